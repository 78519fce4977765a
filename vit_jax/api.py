"""The functions of ``import vit_jax as vj``, one for each thing that the command line does.

A *place* is where weights lie: a run (its workdir), one checkpoint of it, a file or folder in a format that
:func:`convert` knows, ``hf://org/name[@revision][/file]``, ``gs://...``, ``https://...``, or a tag of
:func:`list_pretrained`. What the caller got wrong raises :class:`vit_jax.UserError`, a sentence that names the remedy.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np

from vit_jax import checkpoint as checkpoints
from vit_jax import config as configs
from vit_jax import models
from vit_jax.compress import restructure
from vit_jax.config import Choice
from vit_jax.convert import read, write, zoo
from vit_jax.convert.pretrained import Pretrained, Stored
from vit_jax.convert.verify import Difference
from vit_jax.convert.verify import verify as compare
from vit_jax.convert.zoo import PretrainedTag
from vit_jax.create import create as create_model
from vit_jax.data.image import MAX_PIXELS
from vit_jax.data.sources import Source
from vit_jax.decoding import DECODERS, SearchStrategy
from vit_jax.evals import Evaluator, Report
from vit_jax.export import Exported
from vit_jax.export import check as check_export
from vit_jax.export import export as write_program
from vit_jax.imports import changed, texts
from vit_jax.io import mirror
from vit_jax.models import describe
from vit_jax.predict import BATCH, Images, ImageText, Predictor, Row, expand, of
from vit_jax.predict import load as load_predictor
from vit_jax.score import score, weights
from vit_jax.train import inherit, loop, setup, start, workdir
from vit_jax.train.config import TrainConfig
from vit_jax.train.loop import Hook, Result
from vit_jax.types import UsageError, UserError

log = logging.getLogger(__name__)

Place = str | os.PathLike[str]
Changes = Mapping[str, Any]
"""Keys of a configuration with other values: ``{"optim.lr": 3e-4, "data.val": "folder:/my/images"}``."""


def create(
    name: str, pretrained: Place | None = None, *, size: int | None = None, seed: int = 0, **fields: Any
) -> Pretrained:
    """A model by name, with new parameters or with those of ``pretrained`` fitted to it.

    Weights are fitted as a run fits those of its ``init``: a head for another number of classes is new, positions are
    resized to another size of image, patches to another size of patch; ``notes`` of the result say what was done.
    Fields that decide how a model computes (activation, epsilon, class token) are the weights' unless given.

    Args:
      name: a model of :func:`list_models`, or one of the names that timm, open_clip and the original repository use.
      pretrained: a tag of :func:`list_pretrained`, or the part of one behind ``name`` and a dot; or any place.
      size: side of the images in pixels; None is the weights', without weights 224.
      seed: of new parameters.
      **fields: of the model, such as ``num_classes=10``, ``dtype="bfloat16"`` or ``mlp_linear="monarch(4)"``.

    Returns:
      What unpacks into the unbound Flax module, its parameters and its preprocessing.

    Raises:
      UserError: an unknown name, field or tag (with the nearest ones); weights that do not fit.

    Example:
      >>> model, params, preprocess = vj.create("vit_b16", "augreg_in21k", num_classes=10)
      >>> logits = model.apply({"params": params}, preprocess(["cat.jpg", "dog.jpg"]))  # float32[2, 10]
    """
    return create_model(name, pretrained, size, seed, fields)


def load(place: Place, model: str | None = None, *, changes: Changes | None = None) -> Pretrained:
    """A trained model from anywhere.

    Args:
      place: see the module.
      model: what the weights of another project are, where their shapes do not say: ``"vit_b16(heads=6)"``.
      changes: of the configuration of a run, such as values of one's own that it cannot hold, or ``imports``, the files
        and modules whose classes it names.

    Returns:
      The model with its parameters as a tree of arrays, moving averages where the run kept them.

    Raises:
      UserError: it does not exist, is damaged, unknown, or of another model.

    Example:
      >>> model, params, preprocess = vj.load("runs/digits")
      >>> vj.load("hf://google/vit-base-patch16-224").class_names[281]
      'tabby, tabby cat'
    """
    with read.load(os.fspath(place), model, changes or {}) as found:
        return found.read()


def predict(
    model: Pretrained | Place,
    images: Images,
    *,
    texts: Sequence[str] | None = None,
    captions: str | SearchStrategy | None = None,
    top: int = 5,
    batch_size: int = BATCH,
    max_pixels: int = MAX_PIXELS,
) -> list[Row]:
    """Classes of images, the best of some texts, or captions.

    Args:
      model: what :func:`load` or :func:`create` gave, which keeps what it has compiled; or a place.
      images: files, folders, encoded bytes or uint8[H,W,C], one or a list of them; or uint8[B,H,W,C]. A source such as
        ``"folder:/my/images"`` is its own validation part, or all of it.
      texts: of an image-text model: what to compare every image with.
      captions: of a model with a caption decoder: how to write, ``"greedy"``, ``"beam(4)"`` or ``"nucleus(0.9)"``.
      top: classes or texts to name.
      batch_size: images that go through the model together.
      max_pixels: an image with more is unreadable, but for a JPEG, which is decoded at a fraction of its size.

    Returns:
      A row for every image: ``"path"`` of a file, else ``"image"``, its place in the list, and of an example of a
      source that has any ``"label"``, the name of its class, and ``"captions"``; with ``"predictions"``, a list of
      ``{"class" or "text": str, "probability": float}``, the best first; or ``"caption"`` and its ``"log_p"``;
      or ``"error"`` where the image cannot be read.

    Raises:
      UserError: a question that this model has no answer to; a path that does not exist.

    Example:
      >>> vj.predict("runs/digits", "digits/")[0]["predictions"][0]
      {'class': '7', 'probability': 0.98}
      >>> vj.predict("clip_vit_b32.openai", "cat.jpg", texts=["a cat", "a dog"])
    """
    if texts is not None and captions is not None:
        raise UsageError("texts and captions are two questions; ask one of them.")
    for name, value in {"top": top, "batch_size": batch_size, "max_pixels": max_pixels}.items():
        if value < 1:
            raise UsageError(f"{name}={value} is too small; the least is 1.")
    listed, loaded = expand(images), _predictor(model, max_pixels)
    if captions is not None:
        decoder = configs.parse(Annotated[SearchStrategy, Choice(DECODERS, SearchStrategy)], captions, "captions")
        return list(loaded.captions(listed, decoder, batch_size=batch_size))
    if texts is not None:
        return list(loaded.rank(listed, texts, top=top, batch_size=batch_size))
    return list(loaded(listed, top=top, batch_size=batch_size))


def embed(
    model: Pretrained | Place, images: Images = (), texts: Sequence[str] = (), *, batch_size: int = BATCH
) -> np.ndarray:
    """Embeddings of images and texts.

    Args:
      model: see :func:`predict`.
      images: see :func:`predict`; of a source with captions, such as ``"csv:/my/pairs.csv"``, these too.
      texts: of an image-text model.
      batch_size: images that go through the model together.

    Returns:
      float32[N, E], images first, then their captions, then texts: of unit length from an image-text model, the pooled
      features as they are from a model of images alone.

    Raises:
      UserError: an image cannot be read; texts, and a model of images alone; nothing to embed.

    Example:
      >>> e = vj.embed("clip_vit_b32.openai", ["cat.jpg", "dog.jpg"], ["a cat"])
      >>> (e[:2] @ e[2]).argmax()
      0
    """
    rows = embedded(model, images, texts, batch_size=batch_size)
    if errors := [row["error"] for row in rows if "error" in row]:
        raise UserError(f"{errors[0]} ({len(errors)} of {len(rows)} images; leave them out)")
    return np.stack([row["embedding"] for row in rows]).astype(np.float32)


def embedded(
    model: Pretrained | Place,
    images: Images = (),
    texts: Sequence[str] = (),
    *,
    batch_size: int = BATCH,
    max_pixels: int = MAX_PIXELS,
) -> list[Row]:
    """As :func:`embed`, a row each that says whose it is.

    Returns:
      ``{"path" or "image", "embedding": float32[E]}`` of images, ``"error"`` where one is unreadable, then ``{"path",
      "text", "embedding"}`` of their captions and ``{"text", "embedding"}`` of texts.
    """
    listed = expand(images)
    if not listed and not texts:
        raise UsageError("there is nothing to embed; name images, folders of images, or texts.")
    loaded = _predictor(model, max_pixels)
    if texts and not isinstance(loaded, ImageText):
        raise UserError("a model of images alone embeds no texts; leave out --text, or take an image-text model.")
    rows = list(loaded.rows(listed, lambda x, _: ({"embedding": e} for e in loaded.embed(x)), batch_size))
    named = [{"path": row["path"], "text": text} for row in rows for text in row.pop("captions", ())]
    if not isinstance(loaded, ImageText):
        return rows
    if named and loaded.pretrained.encoder is None:
        log.warning("captions are left out: %s came without a tokenizer", loaded.pretrained.source)
        named = []
    named += [{"text": text} for text in texts]
    if not named:
        return rows
    vectors = loaded.embed_texts([row["text"] for row in named])
    return [*rows, *({**row, "embedding": e} for row, e in zip(named, vectors, strict=True))]


def _predictor(model: Pretrained | Place, max_pixels: int = MAX_PIXELS) -> Predictor | ImageText:
    found = of(model) if isinstance(model, Pretrained) else load_predictor(os.fspath(model))
    return found if found.max_pixels == max_pixels else dataclasses.replace(found, max_pixels=max_pixels)


def train(
    config: str | Changes, workdir: Place, hooks: Sequence[Hook] = (), *, changes: Changes | None = None
) -> Result:
    """Trains to the end, or goes on where the workdir's last checkpoint left off.

    Args:
      config: a recipe's name, ``"FILE"`` or a run, as on the command line; or a ``ConfigDict`` or mapping, which may
        hold an object of one's own wherever a name is meant.
      workdir: folder of the run; created, or resumed.
      hooks: called after every step with a :class:`vit_jax.train.loop.StepEvent`; what they return is logged.
      changes: keys with other values.

    Returns:
      The final state, the last evaluation's report, and what the run was made of.

    Raises:
      UserError: a mistake in the configuration, before the first step; values that are not finite; an interruption.

    Example:
      >>> result = vj.train("digits", "runs/digits", changes={"duration": "2 epochs"})
      >>> result.report.metrics["accuracy"]
      0.93
    """
    raw = configs.load(config) if isinstance(config, str) else configs.plain(config)
    return loop.run(configs.change(raw, (changes or {}).items()), workdir, hooks)


def evaluate(
    run: Place | Result | Pretrained,
    *,
    checkpoint: Place | None = None,
    changes: Changes | None = None,
    data: Source | str | None = None,
    evaluators: Sequence[Evaluator | str] = (),
    size: int | None = None,
    output: Place | None = None,
) -> Report:
    """Evaluates a run again: its newest checkpoint, another one, or the state that :func:`train` ended with; or, with
    ``data``, weights from anywhere.

    Args:
      run: a workdir, whose folder ``evaluation`` gets pictures and ``results.json``; or what :func:`train` returned.
        With ``data`` any place, or what :func:`load` or :func:`create` gave.
      checkpoint: another than the newest, ``WORKDIR/checkpoints/STEP``.
      changes: keys of the run's configuration with other values, such as ``data.val`` or ``evaluators``; with ``data``
        ``imports`` alone, files and modules by whose classes evaluators are named.
      data: a source to score the weights on, ``"folder:/my/images"``: its own validation part, or all of it. The run's
        configuration says nothing then, and no data of training is needed.
      evaluators: with ``data``: ``"classify"``, ``"linear_probe"``, ``"knn(k=5)"``, ``"zero_shot"``, ...; by default
        ``classify`` of a classifier, of an image-text model ``zero_shot``, or ``retrieval`` on captions alone. Probes
        are fitted to the training part of ``data``, or in five folds where it has none.
      size: with ``data``: side of the images in pixels, to which positions are resized; None is the weights'.
      output: with ``data``: a folder for ``results.json`` and pictures.

    Returns:
      The report: ``metrics`` by name, the arrays behind them, and which checkpoint.

    Raises:
      UserError: there is no such run or checkpoint; data of other classes.

    Example:
      >>> vj.evaluate("runs/digits", changes={"data.val": "folder:/other/digits"}).metrics["accuracy"]
      0.91
      >>> vj.evaluate("vit_b16.augreg_in21k", data="folder:/my/images", evaluators=["knn"]).metrics["knn/accuracy"]
      0.93
    """
    if data is not None:
        if set(changes or ()) - {"imports"} or isinstance(run, Result):
            raise UsageError("data scores weights without the configuration of a run; give a place, and no changes.")
        imports = configs.parse(configs.Imports, (changes or {}).get("imports", ()), "imports")
        found = weights(run if checkpoint is None else checkpoint, size, imports)
        return score(found, data, evaluators, output=output, imports=imports)
    if evaluators or size or output or isinstance(run, Pretrained):
        raise UsageError("weights, evaluators, size and output take data; of a run change its configuration instead.")
    if isinstance(run, Result):
        if checkpoint is not None:
            raise UsageError("a result holds its own state; to evaluate a checkpoint name the run's workdir.")
        built = setup.build(inherit.with_tokenizer(_parsed(run.config, changes))) if changes else run.setup
        return built.evaluate(run.state.eval_params)
    path = mirror.local(run)
    place = os.fspath(checkpoint or path)
    config = inherit.with_tokenizer(_parsed(workdir.load(path), changes), place)
    built = setup.build(config, train=start.training_data(config, place))
    params, folder = start.eval_params(built, place)
    report = dataclasses.replace(built.evaluate(params), checkpoint=mirror.shown(str(folder)))
    report.save(path / "evaluation", built.train.info.class_names)
    return report


def best_checkpoint(run: Place) -> pathlib.Path:
    """The folder of a run's best checkpoint: a place for :func:`load`, :func:`predict` and the others.

    Args:
      run: a workdir.

    Raises:
      UserError: there is no run, or none of its checkpoints was evaluated by the metric that its configuration names.

    Example:
      >>> vj.best_checkpoint("runs/digits")
      PosixPath('runs/digits/checkpoints/300')
    """
    return checkpoints.best(os.fspath(run))


def _parsed(raw: Changes, changes: Changes | None) -> TrainConfig:
    config = configs.parse(TrainConfig, configs.change(raw, (changes or {}).items()))
    for note in changed(config.imports, texts(raw)):
        log.warning(note)
    return config


@dataclasses.dataclass(frozen=True)
class Conversion:
    """What :func:`convert` did.

    Attributes:
      target: the folder or file that was written.
      to: its format.
      summary: of the model: its name, number of parameters, classes or length of texts, size of images.
      notes: what was assumed, changed, or cannot be said in that format, one note each.
      differences: to the other projects' own models with these weights; empty where it was not verified.
    """

    target: pathlib.Path
    to: str
    summary: str
    notes: tuple[str, ...]
    differences: tuple[Difference, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether no difference is above the tolerance of :mod:`vit_jax.convert.verify`."""
        return all(row.ok for row in self.differences)


def convert(
    source: Pretrained | Place,
    target: Place,
    *,
    to: str,
    model: str | None = None,
    linear: Sequence[str] = (),
    verify: bool = False,
) -> Conversion:
    """Writes weights in the format of another project, or those of another project in ours.

    Args:
      source: a model in memory, or a place; its leaves are read one at a time.
      target: a new folder, or a new file ending in ``.safetensors`` or ``.npz``.
      to: ``"vit_jax"``, ``"timm"``, ``"open_clip"``, ``"hf"``, ``"npz"`` or ``"big_vision"``.
      model: see :func:`load`.
      linear: linear maps to change on the way: ``"dense"`` multiplies structured ones out, ``"monarch(4)"`` projects,
        ``"int8"`` rounds, ``"mlp_linear=packed24(int8)"`` packs those of one field.
      verify: compare with the other projects' own models, which takes their packages.

    Returns:
      What was written, with notes and differences.

    Raises:
      UserError: the format cannot express the model; the target exists; see also :func:`load`.

    Example:
      >>> vj.convert("runs/digits", "digits.safetensors", to="timm").notes
      ()
    """
    path = pathlib.Path(target)
    places: list[str | pathlib.Path] = [path]
    write.check_target(path, to)
    requests = [restructure.Request.parse(text) for text in linear]
    with contextlib.ExitStack() as stack:
        if isinstance(source, Pretrained):
            stored = source.stored()
        else:
            stored = stack.enter_context(read.load(os.fspath(source), model))
            places = places if requests else [os.fspath(source), path]
        summary, notes = _summary(stored), list(stored.notes)
        if requests:
            stored, changes = restructure.relinear(stored, requests)
            notes += changes
        notes += write.save(stored, path, to)
        if verify and stored.assumed:
            what = ", ".join(stored.assumed)
            notes.append(f"the models compared share what is assumed ({what}): their agreement does not prove it")
        differences = compare(stored, places) if verify else []
    return Conversion(path, to, summary, tuple(notes), tuple(differences))


def _summary(stored: Stored) -> str:
    model = stored.model
    parameters = sum(math.prod(t.shape) for t in stored.params.values())
    tower = getattr(model, "text_tower", None)
    what = f"texts of {tower.length} tokens" if tower else f"{describe.classes(model)} classes"
    name = describe.describe(model).get("name", type(model).__name__)
    return f"{name}, {parameters:,} parameters, {what}, {stored.preprocess.size} px"


def export(model: Pretrained | Place, out: Place, *, to: str, int8: bool = False) -> Exported:
    """Writes a model as programs or weights that run without this package.

    A classifier is one program, an image-text model one for each tower.

    Args:
      model: see :func:`predict`.
      out: a new folder.
      to: ``"stablehlo"``, a program for JAX; ``"onnx"``, one for ONNX runtimes; ``"safetensors"``, a classifier's
        weights for timm.
      int8: of ``"onnx"``, weights in int8 and products computed so.

    Returns:
      Where it is, its inputs and outputs, how far its outputs are from the checkpoint's, and how to run it.

    Raises:
      UserError: the format cannot express the model, or the result differs; a package is missing; ``out`` exists.

    Example:
      >>> print(*vj.export("runs/digits", "digits_onnx", to="onnx").usage, sep="\\n")
      session = onnxruntime.InferenceSession('model.onnx')
      print(session.run(None, {'images': images})[0])
    """
    check_export(to, out, int8)
    return write_program(_predictor(model), to, out, int8)


def list_models(pattern: str = "*") -> list[str]:
    """Names of the models that :func:`create` makes.

    Args:
      pattern: which, with ``*`` and ``?`` for any characters or one.

    Example:
      >>> vj.list_models("vit_b*")
      ['vit_b8', 'vit_b14', 'vit_b16', 'vit_b32']
    """
    return models.names(pattern)


def list_pretrained(pattern: str = "*") -> list[PretrainedTag]:
    """Published weights that :func:`create` and :func:`load` take by a short name.

    Args:
      pattern: which tags, with ``*`` and ``?`` for any characters or one.

    Returns:
      A row each: tag, model, where it is published, licence, size of images, published accuracy and its source.

    Example:
      >>> [row.tag for row in vj.list_pretrained("siglip_vit_b16*")]
      ['siglip_vit_b16.webli']
    """
    return zoo.find(pattern)
