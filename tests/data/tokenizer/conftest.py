"""One small tokenizer of each kind."""

import io

import pytest
import sentencepiece

from vit_jax.data.tokenizer.train import train

CAPTIONS = [
    "a photo of a cat",
    "two dogs on the grass",
    "a seven to the left of a three",
    "the big red apple, isn't it?",
    "A Dog and a Cat!",
] * 8
MERGES = ["t h", "th e</w>", "a t</w>", "c at</w>", "p h", "o t", "ot o</w>", "ph oto</w>", "' s</w>", "o f</w>", "1 2"]


@pytest.fixture(scope="session")
def merges_file(tmp_path_factory):
    """Eleven merges in the format of OpenAI's file."""
    path = tmp_path_factory.mktemp("clip") / "merges.txt"
    path.write_text("\n".join(["#version: 0.2", *MERGES, ""]))
    return path


@pytest.fixture(scope="session")
def json_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("json") / "tokenizer.json"
    path.write_text(train(CAPTIONS, 300))
    return path


@pytest.fixture(scope="session")
def model_file(tmp_path_factory):
    """T5's layout: pad 0, end 1, unknown 2."""
    data = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CAPTIONS),
        model_writer=data,
        vocab_size=50,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    path = tmp_path_factory.mktemp("spm") / "spiece.model"
    path.write_bytes(data.getvalue())
    return path


@pytest.fixture(params=["bytes", "clip", "json", "sentencepiece"], scope="session")
def spec(request):
    """What opens each kind."""
    files = {"clip": "merges_file", "json": "json_file", "sentencepiece": "model_file"}
    if request.param == "bytes":
        return "bytes"
    return f"{request.param}:{request.getfixturevalue(files[request.param])}"
