"""The tree of typed settings of a training run."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from vit_jax.augment import Augment
from vit_jax.checks import Checked, Count, Range, Seed
from vit_jax.config import Choice, Duration, Imports, StepRange, resumable
from vit_jax.data.loader import DataConfig
from vit_jax.evals import EVALUATORS, Classify, Evaluator
from vit_jax.loggers import LOGGERS, LoggerSpec, TensorBoard
from vit_jax.models import NAMES, Model
from vit_jax.objectives import OBJECTIVES, Objective
from vit_jax.objectives import Classify as ClassifyObjective
from vit_jax.optim import OptimConfig
from vit_jax.sharding import MeshConfig
from vit_jax.types import UserError


@dataclasses.dataclass(frozen=True)
class TrainConfig(Checked):
    """A training run.

    Attributes:
      model: name in ``models.NAMES``, with the fields to change; or ``init``, that of the weights which ``init`` names.
      data: which examples are read, and how the host prepares them.
      augment: what happens to images on the device.
      optim: how parameters are updated.
      objective: row of ``OBJECTIVES``: what is minimised; or ``init``, as the weights were trained.
      evaluators: rows of ``EVALUATORS``, run on the validation split.
      duration: length of training.
      batch_size: examples per optimizer step, over all devices and hosts.
      eval_batch_size: examples per evaluation step; None means ``batch_size``.
      accumulate: number of micro-batches that a step is computed in; the gradient is that of the whole batch.
      ema: decay of the parameters' moving average, which is then what is evaluated; None keeps none.
      seed: random seed of initialisation, order of examples, augmentation and dropout.
      mesh: sizes of the device axes.
      init: what to take parameters from: a run, or weights of any format, a path or ``hf://org/name`` (see
        :func:`vit_jax.convert.load`); head, positions and patches are adapted, and it says how.
      resume_from: workdir or checkpoint of another run to continue in full, optimizer and step included.
      accept_changed_data: resume although the data has changed since the checkpoint, other examples or another split of
        them: the run then ends as neither the old one nor a new one would.
      log_every: how often a step's values are written to ``metrics.jsonl``; None means every ten steps, and in a run of
        fewer than 200 steps twenty times.
      eval_every: how often the model is evaluated, each time with a checkpoint that carries the metrics.
      checkpoint_every: how often a checkpoint is written besides those of evaluations.
      keep: number of newest checkpoints kept besides the best.
      best: metric that decides the best checkpoint.
      loggers: rows of ``LOGGERS``: where the rows of ``metrics.jsonl`` go besides.
      patience: evaluations without a better value of ``best`` after which training ends, wherever the schedule is; None
        trains to the end.
      plots: draw learning curves and the evaluators' figures at the end of the run.
      profile: steps, such as ``100:105``, that are traced for XProf into the workdir's folder ``profile``.
      imports: Python files (``parts.py``) or modules (``my_package.parts``) of one's own, which are run; their public
        classes are known by name wherever an object of theirs fits.
    """

    model: Annotated[Model, Choice(NAMES, Model)]
    data: DataConfig
    augment: Augment
    optim: OptimConfig = OptimConfig()
    objective: Annotated[Objective, Choice(OBJECTIVES, Objective)] = ClassifyObjective()
    evaluators: tuple[Annotated[Evaluator, Choice(EVALUATORS, Evaluator)], ...] = resumable((Classify(),))
    duration: Duration = Duration(10, "epochs")
    batch_size: Count = 128
    eval_batch_size: Count | None = resumable(None)
    accumulate: Count = 1
    ema: Annotated[float, Range(0, 1, "()", " such as 0.9999, or None")] | None = None
    seed: Seed = 0
    mesh: MeshConfig = resumable(MeshConfig())
    init: str | None = None
    resume_from: str | None = None
    accept_changed_data: bool = resumable(False)
    log_every: Duration | None = resumable(None)
    eval_every: Duration = resumable(Duration(1, "epochs"))
    checkpoint_every: Duration = resumable(Duration(1, "epochs"))
    keep: Count = resumable(2)
    best: str = resumable("val/accuracy")
    patience: Count | None = resumable(None)
    loggers: tuple[Annotated[LoggerSpec, Choice(LOGGERS, LoggerSpec)], ...] = resumable((TensorBoard(),))
    plots: bool = resumable(True)
    profile: StepRange | None = resumable(None)
    imports: Imports = resumable(())

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init and self.resume_from:
            raise UserError(
                "init and resume_from exclude each other; init takes parameters, resume_from a whole run: take out one "
                "with --config.init=None or --config.resume_from=None."
            )
        frame, augment = self.data.frame, self.augment
        laid = (frame.patch, frame.edge or self.data.canvas) if frame.mode == "patches" else None
        if laid != (None if augment.patch is None else (augment.patch, augment.size)):
            raise UserError(
                f"data.frame has mode={frame.mode!r}, patch={frame.patch}, edge={frame.edge} and augment has "
                f"patch={augment.patch}, size={augment.size}; images in their own shape take mode='patches', one patch "
                "and edge=size, squares another mode and augment.patch=None."
            )
