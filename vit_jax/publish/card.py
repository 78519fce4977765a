"""The card of a model, ``README.md`` of its repository: metadata that the hub reads, and text for people.

The metadata are huggingface_hub's own :class:`~huggingface_hub.ModelCardData`, in the terms of
https://github.com/huggingface/hub-docs/blob/main/modelcard.md.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from vit_jax import checkpoint, models
from vit_jax.convert import zoo
from vit_jax.convert.pretrained import Stored
from vit_jax.io import hub
from vit_jax.models.describe import classes, describe, structured
from vit_jax.publish import public
from vit_jax.types import UserError

LIBRARIES = {"timm": "timm", "hf": "transformers", "open_clip": "open_clip", "vit_jax": "vit_jax"}
"""Format -> the name that the hub has for the library that loads it."""
UNKNOWN = "unknown"
MOST_CLASSES = 1000
"""Names of classes that a card lists."""
TRAINING = {
    "data.path": "data",
    "data.val": "validation data",
    "init": "started from",
    "duration": "duration",
    "batch_size": "batch size",
    "augment.train": "augmentation",
    "optim.optimizer": "optimizer",
    "optim.lr": "learning rate",
    "optim.schedule": "schedule",
    "optim.warmup": "warmup",
    "optim.weight_decay": "weight decay",
    "optim.sam": "SAM",
    "objective": "objective",
    "ema": "moving average",
    "seed": "seed",
}
"""Keys of a configuration that the card tells, in words."""
USE = {
    "timm": """import timm

model = timm.create_model("hf-hub:{repo}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))""",
    "hf": """from transformers import pipeline

print(pipeline("{task}", "{repo}")("image.jpg"{labels}))""",
    "open_clip": """import open_clip

model, preprocess = open_clip.create_model_from_pretrained("hf-hub:{repo}")
tokenizer = open_clip.get_tokenizer("hf-hub:{repo}")""",
    "vit_jax": """import vit_jax as vj

model, params, preprocess = vj.load("hf://{repo}")
print(vj.predict("hf://{repo}", ["image.jpg"]{texts}))""",
}
"""Format -> how what is written in it is loaded."""


@dataclasses.dataclass(frozen=True)
class About:
    """What a card is made of.

    Attributes:
      repo: ``"ORG/NAME"``.
      to: the format of the weights, a key of :data:`LIBRARIES`.
      model: the weights as everybody may see them, see :func:`.public.stored`.
      metrics: of the evaluation of these weights; {} where there was none.
      step: of the checkpoint; None where it is of no run.
      license: its name on the hub, ``"apache-2.0"``.
      datasets: repositories of the hub that it was trained on.
      notes: one human-readable note per thing that the format cannot say.
    """

    repo: str
    to: str
    model: Stored
    metrics: Mapping[str, float]
    step: int | None
    license: str
    datasets: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def task(self) -> str:
        """What the hub calls what the model does."""
        if isinstance(self.model.model, models.ImageTextModel):
            return "zero-shot-image-classification"
        return "image-classification" if classes(self.model.model) else "image-feature-extraction"


def _counts(metric: str) -> bool:
    """Whether it says how much was evaluated, and not how well."""
    return metric.rpartition("/")[2] in ("examples", "images", "captions")


def license_name(text: str) -> str:
    """An identifier of the hub's; raises :class:`UserError` for what can be none."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]*", text):
        raise UserError(
            f"{text!r} is no license; give an identifier of the hub, such as apache-2.0, mit, cc-by-4.0 or other."
        )
    return text.lower()


def evaluation(folder: str) -> tuple[dict[str, float], int | None]:
    """The metrics that the checkpoint in ``folder`` was evaluated with, without their ``val/``, and its step."""
    match = re.search(rf"(?:^|/){checkpoint.FOLDER}/(\d+)/*$", folder)
    if not match:
        return {}, None
    found = checkpoint.metrics_of(pathlib.Path(folder))
    finite = {k: float(v) for k, v in found.items() if isinstance(v, int | float) and math.isfinite(v)}
    return {key.removeprefix("val/"): value for key, value in finite.items()}, int(match[1])


def base_model(init: Any) -> str | None:
    """The repository of the hub that ``init`` of a configuration names, itself or by a tag; None for any other."""
    place = str(init or "")
    row = zoo.tags().get(place)
    place = row.place if row else place
    return hub.address(place)[0] if place.startswith("hf://") else None


def metadata(about: About) -> Any:
    """The :class:`~huggingface_hub.ModelCardData` of a card."""
    from huggingface_hub import EvalResult, ModelCardData

    config = about.model.config or {}
    data = str(config.get("data", {}).get("val") or config.get("data", {}).get("path") or "")
    identifier = about.datasets[0] if len(about.datasets) == 1 else _identifier(data)
    results = [
        EvalResult(
            task_type=about.task, dataset_type=identifier, dataset_name=data, dataset_split="validation",
            metric_type=_identifier(name), metric_name=name, metric_value=round(value, 6),
        )
        for name, value in about.metrics.items()
        if not _counts(name)
    ]  # fmt: skip
    kind = re.sub(r"[^a-z0-9]+", "-", str(describe(about.model.model).get("name", "")).lower()).strip("-")
    base = base_model(config.get("init")) or base_model(about.model.source)
    measured = {"model_name": about.repo.split("/")[1], "eval_results": results}
    parts: dict[str, Any] = measured if results and identifier else {}
    return ModelCardData(
        library_name=LIBRARIES[about.to], license=about.license, pipeline_tag=about.task, base_model=base,
        datasets=list(about.datasets) or None,
        tags=[tag for tag in (about.task, LIBRARIES[about.to], "vit_jax", "jax", kind) if tag], **parts,
    )  # fmt: skip


def _identifier(name: str) -> str:
    """A name as the hub takes it for that of data or of a metric: letters, digits, ``_``, ``-`` and ``.``."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-")


def text(about: About) -> str:
    """The whole card: metadata and text."""
    parts = [f"# {about.repo.split('/')[1]}", _what(about), "## Use", *_use(about)]
    parts += ["## Images", _images(about), *_classes(about), *_training(about)]
    parts += ["## Evaluation", _evaluation(about), "## Provenance", _provenance(about), *_notes(about)]
    return "---\n{}\n---\n\n{}\n".format(metadata(about).to_yaml(), "\n\n".join(parts))


def _what(about: About) -> str:
    model = about.model.model
    parameters = sum(math.prod(t.shape) for t in about.model.params.values())
    what = {
        "image-classification": f"a classifier of {classes(model)} classes",
        "image-feature-extraction": "features of images",
    }
    kind = describe(model).get("name", type(model).__name__)
    maps = ", ".join(f"{k}={v}" for k, v in structured(model).items())
    licence = "" if about.license != UNKNOWN else " Whoever published it named no licence."
    return (
        f"{kind}, {parameters:,} parameters{f', {maps}' if maps else ''}: "
        f"{what.get(about.task, 'an image-text model')}. Trained or converted with vit_jax; weights for "
        f"{LIBRARIES[about.to]}.{licence}\n\n`{_spelled(describe(model))}`"
    )


def _use(about: About) -> Iterable[str]:
    zero_shot = isinstance(about.model.model, models.ImageTextModel)
    words = {
        "repo": about.repo, "task": about.task,
        "labels": ', candidate_labels=["a cat", "a dog"]' if zero_shot else "",
        "texts": ', texts=["a cat", "a dog"]' if zero_shot else "",
    }  # fmt: skip
    for to in dict.fromkeys((about.to, "vit_jax")):
        use = USE[to].format(**words)
        if to == "vit_jax" and about.task == "image-feature-extraction":
            use = use.replace("vj.predict", "vj.embed")
        yield f"```python\n{use}\n```"
    yield (
        f"`vit_jax convert hf://{about.repo} FOLDER --to FORMAT` writes the formats of other libraries (timm, hf, "
        "open_clip, npz, big_vision) where they have such a model."
    )


def _images(about: About) -> str:
    p = about.model.preprocess
    frame = p.host_frame
    rows = {
        "size": f"{p.size} x {p.size}, RGB", "resizing": f"{p.interpolation}, {frame.mode}", "crop": p.crop,
        "canvas": p.canvas, "mean": tuple(round(x, 6) for x in p.mean), "std": tuple(round(x, 6) for x in p.std),
    }  # fmt: skip
    return _table(("", ""), ((key, value) for key, value in rows.items() if value is not None))


def _classes(about: About) -> list[str]:
    names = about.model.class_names
    if not names:
        return []
    listed = "\n".join(f"{i}. {_escaped(name)}" for i, name in enumerate(names[:MOST_CLASSES]))
    listed += f"\n\nand {len(names) - MOST_CLASSES} more." if len(names) > MOST_CLASSES else ""
    return ["## Classes", f"<details><summary>{len(names)} classes</summary>\n\n{listed}\n\n</details>"]


def _training(about: About) -> list[str]:
    if about.model.config is None:
        return []
    rows = []
    for key, name in TRAINING.items():
        value: Any = about.model.config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value not in (None, "", [], {}):
            rows.append((name, f"`{_spelled(value)}`"))
    return ["## Training", _table(("", ""), rows)] if rows else []


def _spelled(value: Any) -> str:
    """``{"name": "adamw", "b1": 0.9}`` as ``adamw(b1=0.9)``."""
    if isinstance(value, Mapping):
        fields = ", ".join(f"{k}={_field(v)}" for k, v in value.items() if k != "name")
        return f"{value.get('name', '')}({fields})" if fields else str(value.get("name", ""))
    if isinstance(value, list | tuple):
        return ", ".join(map(_spelled, value))
    return str(value)


def _field(value: Any) -> str:
    return f"({_spelled(value)})" if isinstance(value, list | tuple) else _spelled(value)


def _evaluation(about: About) -> str:
    if not about.metrics:
        return "These weights were not evaluated in the run that they are of."
    rows = [(f"`{k}`", f"{v:,.0f}" if _counts(k) else f"{v:.4g}") for k, v in about.metrics.items()]
    return f"On the validation part of the data, at step {about.step}:\n\n" + _table(("metric", "value"), rows)


def _provenance(about: About) -> str:
    found = {"checkpoint": None if about.step is None else f"step {about.step}", **about.model.provenance}
    rows = [(key, f"`{value}`") for key, value in found.items() if value is not None]
    return _table(("", ""), rows or [("source", f"`{about.model.source or 'a program'}`")])


def _notes(about: About) -> list[str]:
    notes = dict.fromkeys([*about.model.notes, *map(public.words, about.notes)])
    return ["## Notes", "\n".join(f"- {_escaped(note)}" for note in notes)] if notes else []


def _table(head: tuple[str, str], rows: Iterable[tuple[Any, Any]]) -> str:
    lines = [head, ("---", "---"), *rows]
    return "\n".join("| {} | {} |".format(*(str(cell).replace("|", "\\|") for cell in line)) for line in lines)


def _escaped(name: str) -> str:
    """A name as Markdown shows it, on one line."""
    return re.sub(r"([\\`*_<>\[\]#|])", r"\\\1", " ".join(name.split()))
