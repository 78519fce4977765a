"""Cycles of kernels for TPUs over the sizes of their tiles, by the final schedule of the compiler for one v5e chip.

    python experiments/benchmarks/tiles.py --json tiles.json              # all kernels, a quarter of an hour
    python experiments/benchmarks/tiles.py --only attention --json -

No TPU takes part. Of each kernel and shape every size is compiled, forward and backward, and beside them what the
kernel's own rule takes; what HBM needs for the bytes of a call is the least. In bfloat16.
"""

from __future__ import annotations

import argparse
import functools
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vit_jax import sharding
from vit_jax.cli import output
from vit_jax.kernels import block_diagonal, block_sparse, monarch, monarch_mlp, sparse24, tiles
from vit_jax.kernels.attention import mosaic_tpu as attention
from vit_jax.kernels.block_diagonal.tiling import tiling
from vit_jax.kernels.block_sparse import patterns
from vit_jax.kernels.layer_norm import mosaic_tpu as layer_norm
from vit_jax.kernels.windows import up
from vit_jax.plan import hlo, schedule, topology


class Work(NamedTuple):
    """A kernel at one shape.

    Attributes:
      kernel: its name in :mod:`vit_jax.kernels.tiles`.
      shape: in words.
      run: what is compiled, with its gradient where it has one.
      inputs: of it.
      sizes: of pieces to try beside that of the kernel's own rule.
      turns: of loops whose turns are data, by the name of what is compiled.
      first: in how many steps of the grid what is conditional runs.
    """

    kernel: str
    shape: str
    run: Callable[..., Any]
    inputs: tuple[Any, ...]
    sizes: Sequence[int]
    turns: Mapping[str, int] = types.MappingProxyType({})
    first: int = 1


def array(*shape: int, dtype: str = "bfloat16") -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def even(rows: int, *counts: int) -> list[int]:
    """Rows of a tile where there are so many tiles."""
    return [rows if n == 1 else up(-(-rows // n), 16) for n in counts]


def norms() -> Iterator[Work]:
    run = lambda x, *p: layer_norm.run(x, *p, 1e-6)  # noqa: E731
    for images, tokens, width in ((8, 197, 768), (8, 577, 1024)):
        sizes = even(tokens, 1, 2, 4)
        inputs = array(images, tokens, width), array(width), array(width)
        yield Work("layer_norm", f"{images} x {tokens} x {width}", run, inputs, sizes)


def attentions() -> Iterator[Work]:
    for heads, tokens in ((6, 197), (12, 197), (16, 197)):
        run = lambda x, heads=heads: attention.run(x, heads, False)  # noqa: E731
        sizes = [n for n in range(heads, 0, -1) if heads % n == 0 and n % 2 == 0]
        x = array(8, tokens, 3 * 64 * heads)
        yield Work("attention", f"{tokens} tokens, {heads} heads of 64", run, (x,), sizes)


def factors(n: int, m: int, blocks: int = 4) -> tuple[Any, Any]:
    middle = min(n, m)
    return array(blocks, middle // blocks, n // blocks), array(blocks, m // blocks, middle // blocks)


def monarchs() -> Iterator[Work]:
    for tokens, n, m, blocked, parts in (
        (197, 768, 2304, True, 1), (577, 768, 768, False, 4), (577, 1024, 3072, True, 1),
    ):  # fmt: skip
        options = {"input_parts": parts, "blocked": blocked, "implementation": "mosaic_tpu"}
        run = functools.partial(monarch.monarch, **options)
        inputs = array(8, tokens, n), *factors(n, m), array(m)
        yield Work("monarch", f"8 x {tokens}, {n} to {m}", run, inputs, even(tokens, 1, 2))


def perceptrons() -> Iterator[Work]:
    def run(x: Any, *maps: Any) -> Any:
        return monarch_mlp.monarch_mlp(x, maps[:3], maps[3:], jax.nn.gelu, implementation="mosaic_tpu")

    for tokens, width in ((197, 768), (577, 768)):
        hidden = 4 * width
        maps = *factors(width, hidden), array(hidden), *factors(hidden, width), array(width)
        inputs = array(8, tokens, width), *maps
        yield Work("monarch_mlp", f"8 x {tokens} x {width}", run, inputs, even(tokens, 1, 2))


def diagonals() -> Iterator[Work]:
    run = functools.partial(block_diagonal.block_diagonal, implementation="mosaic_tpu")
    for rows, n, m in (
        (1576, 192, 768), (1576, 768, 3072), (1576, 3072, 768), (12608, 384, 1536), (12608, 768, 3072),
        (12608, 1024, 4096),
    ):  # fmt: skip
        sizes = even(rows, 2, 4, 8) if rows < 4000 else even(rows, 13, 25, 50)
        inputs = array(rows, n), array(4, n // 4, m // 4), array(m)
        groups = tiling(4, n // 4, m // 4).groups
        yield Work("block_diagonal", f"{rows:,} rows, {n} to {m}", run, inputs, sizes, first=groups)


def sparse() -> Iterator[Work]:
    for rows, n, m in ((1576, 384, 1536), (1576, 3072, 768), (12608, 768, 3072), (12608, 4096, 1024)):
        per = patterns.count(0.25, n // 128)
        index = patterns.butterfly(n // 128, m // 128, per)

        def run(x: Any, kernel: Any, bias: Any, index: Any = index) -> Any:
            return block_sparse.block_sparse(x, kernel, index, bias, implementation="mosaic_tpu")

        sizes = even(rows, 1, 2, 4) if rows < 4000 else even(rows, 7, 9, 13, 25)
        turns = {"block_sparse_forward": per, "block_sparse_input_gradient": per * m // n}
        inputs = array(rows, n), array(per, 128, m), array(m)
        yield Work("block_sparse", f"{rows:,} rows, {n} to {m}", run, inputs, sizes, turns, m // 128)


def packed() -> Iterator[Work]:
    run = functools.partial(sparse24.sparse24, implementation="mosaic_tpu")
    for rows, n, m in ((8, 768, 3072), (8, 3072, 768), (197, 1024, 4096), (8, 4096, 11008)):
        inputs = array(rows, n), array(n // 2, m), array(n // 8, m, dtype="uint8")
        yield Work("sparse24", f"{rows} rows, {n} to {m}", run, inputs, (1024, 512, 256, 128))


WORK = {
    "layer_norm": norms, "attention": attentions, "monarch": monarchs, "monarch_mlp": perceptrons,
    "block_diagonal": diagonals, "block_sparse": sparse, "sparse24": packed,
}  # fmt: skip


Lowered = dict[str, tuple[hlo.Kernel, int]]


def lowered(work: Work, size: int | None, mesh: Mesh) -> Lowered:
    """Names of kernels -> themselves, and the bytes of a call; ``size`` None is what their own rule takes."""
    pin = {} if size is None else {work.kernel: size}
    whole = NamedSharding(mesh, PartitionSpec())
    place = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole)  # noqa: E731

    def both(inputs: Any, g: Any) -> Any:
        y, pull = jax.vjp(work.run, *inputs)
        return y, pull(g)

    with jax.set_mesh(mesh), topology.quiet(), tiles.pinned(**pin):
        if work.kernel == "sparse24":  # its gradient is a dense product
            program = jax.jit(work.run).lower(*map(place, work.inputs))
        else:
            y = jax.eval_shape(work.run, *work.inputs)
            program = jax.jit(both).lower(*jax.tree.map(place, (work.inputs, y)))
        text = program.compiler_ir("hlo").get_hlo_module().to_string()
    return {kernel.name: (kernel, moved) for kernel, _, moved in hlo.kernels(hlo.parse(text))}


def scan(works: Sequence[Work], mesh: Mesh, chip: topology.Chip) -> Iterator[dict[str, Any]]:
    """Of each kernel of ``works`` the cycles of a call by the size of its pieces, or why it has none."""
    tried = [{size: lowered(work, size, mesh) for size in (None, *work.sizes)} for work in works]
    known = schedule.of(list({k: None for one in tried for found in one.values() for k, _ in found.values()}), chip)
    for work, one in zip(works, tried, strict=True):
        for name, (own, moved) in one[None].items():
            waits = moved / chip.bandwidth * chip.clock
            cycles = {}
            for size, found in one.items():
                s = known[found[name][0]]
                cycles[f"{size or 'rule'}"] = s if isinstance(s, str) else spent(s, waits, work, name)
            same = [size for size, found in one.items() if size and found[name][0] == own]
            yield {"kernel": name, "shape": work.shape, "hbm": round(waits), "taken": same, "cycles": cycles}


def spent(s: schedule.Schedule, waits: float, work: Work, name: str) -> int:
    """Cycles of a call; what the first piece waits for overlaps with nothing, nor does what the last one leaves."""
    turns = work.turns.get(name, 1)
    computes = s.cycles + s.turn * (turns - 1) - s.conditional * (1 - work.first / s.steps)
    return round(max(waits, computes) + min(waits, computes) / s.steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(WORK), default=list(WORK), metavar="KERNEL")
    parser.add_argument("--json", metavar="FILE", help="write the result there, - for the terminal")
    args = parser.parse_args()
    chip = topology.CHIPS["v5e"]
    devices = topology.find("v5e:1x1").devices
    mesh = Mesh(np.asarray(devices).reshape(1, 1, 1), sharding.AXES)
    rows = []
    for name in args.only:
        rows += scan(list(WORK[name]()), mesh, chip)
    if args.json != "-":
        for row in rows:
            print(f"{row['kernel']:30s} {row['shape']:28s} {row['cycles']}")
    output.write(args.json, {"rows": rows})


if __name__ == "__main__":
    main()
