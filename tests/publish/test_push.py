"""Publishing on a hub on this machine, and loading what lies there."""

import json
import os

import jax
import numpy as np
import pytest

import vit_jax as vj
from vit_jax.publish import push
from vit_jax.types import UsageError, UserError

LABELS = ("ant | *x*", "bee", "cät")


@pytest.mark.parametrize("to", ["timm", "hf", "vit_jax"])
def test_what_was_pushed_is_loaded_from_there(hub, run, to):
    hub.repos["me/pets"] = {"main": {".gitattributes": b"x"}}  # it exists already
    done = vj.push(run, "hf://me/pets", to=to, license="mit")
    ((repo, message, names),) = hub.commits  # one commit
    files = hub.repos["me/pets"]["main"]
    assert (
        repo == "me/pets" and "vit_jax" in message and set(names) == set(done.files) == set(files) - {".gitattributes"}
    )
    assert done.url == f"{hub.url}/me/pets/commit/{done.url.rpartition('/')[2]}"
    assert files["README.md"].decode() == done.card and hub.validated
    assert all(asked == {"repoType": "model", "content": done.card} for asked in hub.validated)
    assert {name: len(files[name]) for name in done.files} == done.files
    for name, content in files.items():  # nothing of where it was
        for secret in (b"secret", b"ann/", b"/tmp", os.fsencode(push.tempfile.gettempdir())):
            assert secret not in content, (name, secret)
    ours, theirs = vj.load(run), vj.load("hf://me/pets")
    jax.tree.map(np.testing.assert_array_equal, theirs.params, ours.params)
    assert theirs.class_names == LABELS and theirs.preprocess.size == 8


def test_a_dry_run_and_a_card_alone(hub, run, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    made = vj.push(vj.load(run), "hf://me/pets", dry_run=True)
    assert set(made.files) == {"README.md", "config.json", "model.safetensors"} and made.url is None
    again = vj.push(run, "hf://me/pets", card_only=tmp_path / "card")
    assert (tmp_path / "card" / "README.md").read_text() == again.card
    assert "license: unknown" in again.card and "library_name: timm" in again.card
    assert hub.requests == []


def test_private(hub, run):
    vj.push(run, "hf://me/new", private=True)
    assert hub.private == {"me/new"}
    hub.repos["me/old"] = {"main": {"a": b""}}
    with pytest.raises(UserError, match=r"me/old exists and is public; make it private"):
        vj.push(run, "hf://me/old", private=True)
    assert hub.repos["me/old"] == {"main": {"a": b""}}


def test_what_the_hub_refuses_is_said(hub, run, monkeypatch):
    hub.refuses = '"license" must be one of [...]'
    with pytest.raises(UserError, match=r'does not take me/pets with this card: "license" must be one of'):
        vj.push(run, "hf://me/pets", license="mitt")
    hub.refuses = ""
    monkeypatch.setenv("HF_TOKEN", "hf_of_another")
    with pytest.raises(UserError, match=r"may not write to me/pets .*401.*hf auth login"):
        vj.push(run, "hf://me/pets")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match=r"no token of the hub.*hf auth login"):
        vj.push(run, "hf://me/pets")
    monkeypatch.setenv("HF_TOKEN", "hf_of_this_test")
    hub.status["commit"] = 500
    with pytest.raises(UserError, match=r"does not answer as it should .*; nothing is lost"):
        vj.push(run, "hf://me/pets")
    assert hub.commits == []


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("runs/x", "'runs/x' is no repository of the hub; write hf://ORG/NAME"),
        ("hf://x", "cannot be read; write hf://ORG/NAME"),
        ("hf://me/pets@v1", "names more than a repository; write hf://me/pets"),
        ("hf://me/pets/x.npz", "names more than a repository"),
    ],
)
def test_targets(target, words, run):
    with pytest.raises(UserError, match=words):
        vj.push(run, target, dry_run=True)


def test_formats(run):
    with pytest.raises(UsageError, match=r"unknown format to publish 'npz'; .*timm"):
        vj.push(run, "hf://me/pets", to="npz", dry_run=True)
    with pytest.raises(UserError, match="open_clip has no ViT by itself; write --to timm"):
        vj.push(run, "hf://me/pets", to="open_clip", dry_run=True)


@pytest.mark.slow
def test_timm_and_transformers_load_it(hub, run, tmp_path, timm, transformers):
    for to in ("timm", "hf"):
        vj.push(run, "hf://me/pets", to=to)
        folder = tmp_path / to
        folder.mkdir()
        for name, content in hub.repos["me/pets"]["main"].items():
            (folder / name).write_bytes(content)
        hub.repos.clear()
    model = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True)
    assert timm.data.resolve_model_data_config(model)["input_size"] == (3, 8, 8)
    found = transformers.AutoModelForImageClassification.from_pretrained(str(tmp_path / "hf"))
    assert found.config.id2label == dict(enumerate(LABELS))
    assert json.loads((tmp_path / "hf" / "config.json").read_text())
