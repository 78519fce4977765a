"""The tokenizer of open_clip's models: found, written, and equal to what open_clip itself makes of the files."""

import json

import pytest

from vit_jax.convert.hf import tokenizer
from vit_jax.convert.open_clip.tokenizer import CLIP_SIZE, read, write
from vit_jax.data.text import TextCodec
from vit_jax.data.tokenizer import open_tokenizer
from vit_jax.data.tokenizer.clip import Clip
from vit_jax.data.tokenizer.train import train
from vit_jax.types import UserError

CAPTIONS = ["a photo of a cat", "two  dogs, on the grass!", "A seven_to the left of a three"]
T5 = {"hf_tokenizer_name": "timm/ViT-B-16-SigLIP", "tokenizer_kwargs": {"clean": "canonicalize"}}


@pytest.fixture(scope="module")
def json_file(tmp_path_factory):
    """A ``tokenizer.json`` that ends texts as T5's does."""
    path = tmp_path_factory.mktemp("json") / "tokenizer.json"
    content = json.loads(train(CAPTIONS * 8, 300))
    end = next(t for t in content["added_tokens"] if "end" in t["content"] or t["content"] == "</s>")
    special = {"id": end["content"], "ids": [end["id"]], "tokens": [end["content"]]}
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": end["content"], "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {end["content"]: special},
    }
    path.write_text(json.dumps(content))
    return path


def test_clips_own(open_clip):
    encoder, notes = read({}, {}, 77, CLIP_SIZE)
    assert encoder.tokenizer.vocab_size == CLIP_SIZE and not notes
    assert (encoder(CAPTIONS) == open_clip.get_tokenizer("ViT-B-32")(CAPTIONS).numpy()).all()
    said, files, notes = write(encoder)
    assert (said, files, notes) == ({}, {}, [])
    plain, _ = read({}, {"tokenizer_kwargs": {"clean": "canonicalize"}}, 77, CLIP_SIZE)
    want = open_clip.tokenizer.SimpleTokenizer(clean="canonicalize")
    assert (plain(CAPTIONS) == want(CAPTIONS).numpy()).all()
    assert write(plain)[0] == {"tokenizer_kwargs": {"clean": "canonicalize"}}


def test_files_beside(json_file, open_clip, transformers, tmp_path):
    names = {t["content"]: t["id"] for t in json.loads(json_file.read_text())["added_tokens"]}
    end = next(n for n in names if "end" in n or n == "</s>")
    settings = {"pad_token": {"content": end}}  # as SigLIP fills up, though the file has a token for that
    about = {"tokenizer.json": json_file, "tokenizer_config.json": settings}
    encoder, notes = read(about, T5, 12, 300)
    t = encoder.tokenizer
    assert not notes and t.start_id is None and t.pad_id == t.end_id == names[end] and t.clean == "canonicalize"
    said, files, notes = write(encoder)
    assert said["tokenizer_kwargs"] == {"clean": "canonicalize"} and not notes
    folder = tmp_path / "out"
    folder.mkdir()
    for name, value in files.items():
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        (folder / name).write_bytes(data)
    config = {"model_cfg": {"text_cfg": {**said, "context_length": 12}}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    theirs = open_clip.get_tokenizer(f"local-dir:{folder}")
    assert (encoder(CAPTIONS) == theirs(CAPTIONS).numpy()).all()
    about = {"tokenizer.json": folder / "tokenizer.json"}
    about["tokenizer_config.json"] = json.loads((folder / "tokenizer_config.json").read_text())
    assert read(about, said, 12, 300) == (encoder, [])


def test_our_own(tmp_path):
    for encoder in (TextCodec(open_tokenizer("bytes"), 9), TextCodec(Clip("t h\nth e</w>"), 9)):
        said, files, notes = write(encoder)
        about = {}
        for name, value in files.items():
            if isinstance(value, bytes):
                about[name] = tmp_path / name
                about[name].write_bytes(value)
            elif name == tokenizer.FILE:
                about[name] = json.loads(json.dumps(value))
        assert read(about, said, 9, encoder.tokenizer.vocab_size) == (encoder, [])
        assert bool(notes) == (encoder.tokenizer.state()["kind"] == "bytes")


def test_what_is_not_there(json_file, tmp_path):
    for said, words in (
        (T5, "the tokenizer.json of 'timm/ViT-B-16-SigLIP' is not beside"),
        ({**T5, "tokenizer_kwargs": {"strip_sep_token": True}}, "strip_sep_token=True"),
        ({**T5, "tokenizer_mode": "clips"}, "tokenizer_mode='clips'"),
        ({}, "300 are not CLIP's"),
    ):
        encoder, (note,) = read({}, said, 12, 300)
        assert encoder is None and words in note and "texts have to come as tokens" in note
    assert "no tokenizer is known" in write(None)[2][0]
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"is no JSON of the tokenizers library .*; get it again, or remove it"):
        read({"tokenizer.json": tmp_path / "tokenizer.json"}, T5, 12, 300)
