"""What a person sees of a run: a bar on a terminal, plain lines elsewhere, nothing on hosts but the first."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Mapping, Sequence

import jax
from tqdm import tqdm

from vit_jax.io import mirror

SHOWN = {
    "loss": "loss {:.4g}",
    "lr": "lr {:.2e}",
    "speed/images_per_s": "{:.0f} images/s",
    "speed/mfu": "MFU {:.0%}",
    "speed/waiting": "input wait {:.0%}",
}
"""What of a row of the log is shown, and how."""


def say(text: str) -> None:
    """One line for the person at the terminal, above the bar if there is one; only the first host speaks.

    That nobody can hear it, on a full disk or through a pipe that was closed, ends nothing.
    """
    if jax.process_index() == 0:
        with contextlib.suppress(OSError):
            tqdm.write(mirror.shown(text), file=sys.stdout)
            sys.stdout.flush()


def noted(what: str, notes: Sequence[str]) -> str:
    """Where parameters come from, and below it what was changed on the way, a line each."""
    return what + ("".join(f"\n  {note}" for note in notes) or ": every parameter taken as it is")


class Progress:
    """Steps done, remaining time, and the latest values: loss, learning rate, images/s, MFU, share of time waiting.

    Args:
      start: steps done before.
      total: steps of the run.
      epoch: steps of an epoch, which is seldom a whole number.
    """

    def __init__(self, start: int, total: int, epoch: float) -> None:
        self._live = sys.stderr.isatty() and jax.process_index() == 0
        self._epoch = epoch
        self._total, self._last, self._started, self._first = total, 0.0, 0.0, start + 1
        self._bar = tqdm(
            total=total,
            initial=start,
            unit="step",
            disable=not self._live,
            dynamic_ncols=True,
            mininterval=0.2,
            bar_format="{percentage:3.0f}% {bar} {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]",
        )

    def step(self) -> None:
        """One optimizer step was started."""
        self._started = self._started or time.perf_counter()  # compiling is over
        self._bar.update()

    def at(self, step: int) -> str:
        """How far a run is: ``step 900/3592 (epoch 20.0/80)``."""
        total = self._total / self._epoch
        digits = 1 if total >= 2 else 2
        return f"step {step}/{self._total} (epoch {step / self._epoch:.{digits}f}/{round(total, digits):g})"

    def show(self, step: int, values: Mapping[str, float]) -> None:
        """The values of a row of the log; without a terminal a line at most every ten seconds, and at the end."""
        text = ", ".join(form.format(values[k]) for k, form in SHOWN.items() if k in values)
        if self._live:
            self._bar.set_postfix_str(f"epoch {step / self._epoch:.1f}, {text}", refresh=False)
            return
        now = time.perf_counter()
        if now - self._last >= 10 or step == self._total:
            self._last = now
            left = (now - self._started) / max(1, step - self._first) * (self._total - step)
            say(f"{self.at(step)}: {text}" + (f", {left:.0f} s left" if step > self._first else ""))

    def close(self) -> None:
        self._bar.close()


def table(rows: Mapping[str, object]) -> str:
    """Two aligned columns."""
    width = max(map(len, rows))
    texts = {
        k: f"{v:,}" if isinstance(v, int) else f"{v:.6g}" if isinstance(v, float) else str(v) for k, v in rows.items()
    }
    return "\n".join(f"  {k:<{width}}  {v}" for k, v in texts.items())
