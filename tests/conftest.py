"""Strict rules for every test: 8 fake CPU devices, no implicit dtype or rank promotion, warnings are errors.

Tests marked ``peer`` or ``tpu`` need a package of an extra and are skipped, in one line, where it is missing. A test
that compiles more than :data:`MOST_PROGRAMS` programs fails unless it is marked ``slow`` or ``thorough``: the suite is
short because programs are shared, and because of what is shown on several cases it runs the first.
"""

from __future__ import annotations

import collections
import errno
import functools
import gc
import importlib
import importlib.metadata
import importlib.util
import os
import pathlib
import signal
from collections.abc import Callable, Iterator
from typing import Any

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in the background of a shell; tests need it
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8"
    # Eight devices meet in threads of few cores: on a busy machine later than 40 s, after which XLA ends the process.
    + " --xla_cpu_collective_call_terminate_timeout_seconds=600"
)
if importlib.metadata.version("jaxlib").startswith("0.10."):
    # The older emitters of loops compile tiny programs in half the time; those of today gain on large arrays, and are
    # the only ones from 0.11 on, which ends at a flag that it does not know.
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
    # Two workers keep both cores busy: a program cut into parts that are compiled side by side only costs more.
    os.environ["XLA_FLAGS"] += " --xla_cpu_parallel_codegen_split_count=1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Workers and later runs compile an equal program once, and none goes to the user's own cache.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parents[1] / ".pytest_cache/programs"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two workers share two cores
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import matplotlib
import numpy as np
import pytest
from jax._src.interpreters import mlir
from jax.experimental import topologies

from tests import peers
from vit_jax.report import plots

matplotlib.use("Agg")
plots.DPI = 40  # pictures are looked at for what was drawn
# A context of MLIR for each program takes as long to make as a tiny program to lower.
mlir.make_ir_context = functools.cache(mlir.make_ir_context)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_disable_most_optimizations", True)  # tiny programs: compiling them is nearly all of the time


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("filterwarnings", "error")
    for module in (
        "flax",
        "orbax",
        "tensorstore",
        "grain",
        "tensorflow_datasets",
        "google",
        "etils",
        "jupyter_client",
    ):
        config.addinivalue_line("filterwarnings", f"default::DeprecationWarning:{module}")


MARKED = {**dict.fromkeys(("torch", "timm", "transformers", "open_clip"), "peer"), "tpu_chips": "tpu"}
"""Fixture -> the marker of every test that asks for it, also through another fixture."""

EXTRAS = {"peer": ("torch", "torch"), "tpu": ("libtpu", "tpu-compile")}
"""Marker -> the package that its tests need, and the extra that brings it."""

ON_REQUEST = ("slow", "thorough")
"""Markers of tests that run where ``-m`` names them."""

LONGEST = ("test_processes.py",)
"""Modules with tests of half a minute: they come first, since at the end one worker would wait for the other."""

MOST_PROGRAMS = 40
"""Programs that one test may compile, those of its fixtures not counted."""

_compiled: list[str] = []
"""Names of the programs compiled so far; operations that run eagerly are shared by all tests and are no programs."""


def _note_program(event: str, duration: float, *, fun_name: str = "", **_: Any) -> None:
    name = fun_name.removeprefix("jit(").removesuffix(")")
    if event == "/jax/core/compile/backend_compile_duration" and not hasattr(jax.lax, f"{name}_p"):
        _compiled.append(name)


jax.monitoring.register_event_duration_secs_listener(_note_program)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    missing = {
        marker: pytest.mark.skip(reason=f"{package} is missing: pip install '.[{extra}]'")
        for marker, (package, extra) in EXTRAS.items()
        if importlib.util.find_spec(package) is None
    }
    for item in items:
        for marker in {MARKED[name] for name in getattr(item, "fixturenames", ()) if name in MARKED}:
            item.add_marker(marker)
        if item.get_closest_marker("tpu"):
            # a program for chips that are not here can be written to the cache and not be read: it is compiled again
            item.add_marker(pytest.mark.filterwarnings("ignore:Error reading persistent compilation cache:UserWarning"))
        for marker in missing.keys() & {mark.name for mark in item.iter_markers()}:
            item.add_marker(missing[marker])
    cases: collections.Counter[tuple[pathlib.Path, str]] = collections.Counter()
    for item in items:
        test = item.path, item.nodeid.partition("[")[0]
        cases[test] += 1
        if (first := item.get_closest_marker("first")) and cases[test] > first.args[0]:
            item.add_marker("thorough")
    items.sort(key=lambda item: item.path.name not in LONGEST)
    unasked = [marker for marker in ON_REQUEST if marker not in config.option.markexpr]
    left_out = [item for item in items if any(map(item.get_closest_marker, unasked))]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if not any(map(item.get_closest_marker, unasked))]


def pytest_collection_finish() -> None:
    """Spares the garbage collector what stays to the end, modules and tests, and most of its rounds."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """What a module has compiled stays too."""
    if nextitem is None or nextitem.path != item.path:
        gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    before = len(_compiled)
    yield
    programs = len(_compiled) - before
    item.user_properties.append(("programs", programs))
    if programs > MOST_PROGRAMS and not any(map(item.get_closest_marker, ON_REQUEST)):
        pytest.fail(
            f"{programs} programs were compiled, {MOST_PROGRAMS} are allowed: share them or mark the test thorough."
        )


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The tests that were skipped, counted by reason, and those that compiled the most programs."""
    reasons = collections.Counter(report.longrepr[2] for report in terminalreporter.stats.get("skipped", ()))
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"{count} skipped: {reason.removeprefix('Skipped: ')}")
    reports = [r for r in terminalreporter.stats.get("passed", ()) if r.when == "call"]
    counts = sorted(((dict(r.user_properties).get("programs", 0), r.nodeid) for r in reports), reverse=True)
    if terminalreporter.config.option.durations and counts:
        terminalreporter.section(f"{sum(n for n, _ in counts)} programs compiled by tests, most by")
        for programs, test in counts[:10]:
            terminalreporter.write_line(f"{programs:4d} {test}")


@pytest.fixture
def fails(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[None]]:
    """``fails(os, "open", 2)``: the next two calls raise an error that passes, and nobody waits long for the next try.

    Returns what is left of them.
    """
    from vit_jax.io import retry

    monkeypatch.setattr(retry, "WAITS", (0.0,) * 3)

    def fail(owner: Any, name: str, times: int) -> list[None]:
        real, left = getattr(owner, name), [None] * times

        def call(*args: Any, **options: Any) -> Any:
            if left:
                left.pop()
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(args[0]))
            return real(*args, **options)

        monkeypatch.setattr(owner, name, call)
        return left

    return fail


@pytest.fixture
def rng() -> np.random.Generator:
    """Seeded NumPy randomness."""
    return np.random.default_rng(0)


@pytest.fixture
def tpu_chips(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Devices of a TPU topology to compile for, "v5e:2x2" for instance: takes the package ``libtpu``, and no TPU."""
    pytest.importorskip("libtpu")
    settings = {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-8",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    for key, value in settings.items():
        monkeypatch.setenv(key, value)
    return lambda topology, **options: topologies.get_topology_desc(topology, platform="tpu", **options).devices


@pytest.fixture(scope="session")
def torch() -> Any:
    """PyTorch, one thread."""
    module = pytest.importorskip("torch")
    module.set_num_threads(1)
    return module


@pytest.fixture(scope="session")
def timm(torch: Any) -> Any:
    """timm."""
    return _peer("timm")


@pytest.fixture(scope="session")
def transformers(torch: Any) -> Any:
    """Hugging Face transformers."""
    return _peer("transformers")


@pytest.fixture(scope="session")
def open_clip(torch: Any) -> Any:
    """open_clip."""
    return _peer("open_clip")


def _peer(name: str) -> Any:
    try:
        return peers.imported(name)
    except ModuleNotFoundError as e:
        pytest.skip(str(e))
