"""The card: metadata that the hub's own classes take, and a text that tells the model."""

import dataclasses

import pytest
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.repocard import metadata_eval_result
from huggingface_hub.repocard_data import model_index_to_eval_results

from tests.hub_server import problem
from vit_jax.convert import load
from vit_jax.publish import card, public
from vit_jax.types import UserError


@pytest.fixture(scope="module")
def about(run):
    metrics, step = card.evaluation(str(run / "checkpoints" / "7"))
    with load(str(run)) as found:
        return card.About(
            "me/pets", "timm", public.stored(found), metrics, step, "mit", ("me/pets-images",), ("a | b",)
        )


def test_the_metadata_are_what_the_hub_takes(about):
    """What the library makes of the card, and what it would have written itself."""
    found = ModelCard(card.text(about)).data
    assert found.to_dict() == card.metadata(about).to_dict()
    assert (found.library_name, found.license, found.pipeline_tag) == ("timm", "mit", "image-classification")
    assert found.base_model == "timm/vit_base_patch16_224.augreg_in21k" and found.datasets == ["me/pets-images"]
    assert set(found.tags) == {"image-classification", "timm", "vit_jax", "jax", "vit"}
    data = "mix:1*folder:a+2*csv:b.csv"
    index = found.to_dict()["model-index"]
    theirs = metadata_eval_result(
        model_pretty_name="pets", task_pretty_name=None, task_id="image-classification", metrics_pretty_name="accuracy",
        metrics_id="accuracy", metrics_value=0.75, dataset_pretty_name=data, dataset_id="me/pets-images",
        dataset_split="validation",
    )["model-index"]  # fmt: skip
    assert index[0]["results"][0]["metrics"][0] == {"type": "accuracy", "value": 0.75, "name": "accuracy"}
    (their,) = model_index_to_eval_results(theirs)[1]
    assert dataclasses.replace(their, verified=None) == model_index_to_eval_results(index)[1][0]
    assert [r.metric_type for r in model_index_to_eval_results(index)[1]] == [
        "accuracy",
        "loss",
    ]  # neither NaN nor counts


def test_data_and_metrics_have_names_that_the_hub_takes(about):
    unnamed = dataclasses.replace(about, datasets=(), metrics={"zero_shot/accuracy": 0.5})
    (result,) = card.metadata(unnamed).eval_results
    assert (result.dataset_type, result.metric_type) == ("mix-1-folder-a-2-csv-b.csv", "zero_shot-accuracy")
    assert (result.dataset_name, result.metric_name) == ("mix:1*folder:a+2*csv:b.csv", "zero_shot/accuracy")
    assert problem(card.text(unnamed)) == problem(card.text(about)) == ""
    assert '"dataset.type" with value "a b" fails' in problem(
        card.text(unnamed).replace("mix-1-folder-a-2-csv-b.csv", "a b")
    )


def test_the_text_tells_the_model(about):
    text = card.text(about)
    assert (
        "# pets\n" in text
        and "a classifier of 3 classes" in text
        and "`vit(num_classes=3, " in text
        and 'timm.create_model("hf-hub:me/pets"' in text
    )
    assert 'vj.load("hf://me/pets")' in text and "0. ant \\| \\*x\\*\n1. bee\n2. cät" in text
    assert "| data | `folder:pets` |" in text and "| started from | `vit_b16.augreg_in21k` |" in text
    assert "at step 7:" in text and "| `accuracy` | 0.75 |" in text and "| `examples` | 8 |" in text
    assert "| commit | `abc-dirty` |" in text and "- a \\| b" in text
    for secret in ("secret", "ann/", "/tmp", "command", "wandb"):
        assert secret not in text, secret


def test_what_is_not_known_is_not_said(about):
    bare = dataclasses.replace(about.model, config=None, provenance={}, class_names=(), source="x.npz", notes=())
    unknown = dataclasses.replace(about, model=bare, metrics={}, step=None, license="unknown", datasets=(), notes=())
    found = ModelCard(text := card.text(unknown)).data
    assert isinstance(found, ModelCardData) and found.eval_results is None and found.base_model is None
    assert "named no licence" in text and "were not evaluated" in text and "| source | `x.npz` |" in text
    assert "## Training" not in text and "## Classes" not in text and "## Notes" not in text


def test_where_metrics_come_from(run, tmp_path):
    assert card.evaluation(str(tmp_path / "model.safetensors")) == ({}, None)
    assert card.evaluation(str(tmp_path / "checkpoints" / "3")) == ({}, 3)
    assert card.evaluation(f"{run}/checkpoints/7") == ({"accuracy": 0.75, "loss": 0.5, "examples": 8.0}, 7)


@pytest.mark.parametrize(
    ("init", "repo"),
    [
        (None, None),
        ("/runs/x", None),
        ("hf://a/b@v1/x.npz", "a/b"),
        ("vit_b16.augreg_in21k", "timm/vit_base_patch16_224.augreg_in21k"),
    ],
)
def test_the_base_model_is_one_of_the_hub(init, repo):
    assert card.base_model(init) == repo


def test_licenses():
    assert card.license_name("Apache-2.0") == "apache-2.0"
    with pytest.raises(UserError, match=r"'a b' is no license; give .* apache-2\.0"):
        card.license_name("a b")
