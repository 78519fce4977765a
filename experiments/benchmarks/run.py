"""Every benchmark in a process of its own; the tables and the picture of README.md are made of what they found.

    python experiments/benchmarks/run.py                      # what has no result yet
    python experiments/benchmarks/run.py --only cpu --again   # a table, or rows by their names, anew
    python experiments/benchmarks/run.py --json all.json      # and all results in one file

A result goes to results/NAME.json once it is there, and README.md is written anew: what was cut short goes on without
``--again``. What cannot be measured here (no timm, no libtpu) keeps its line, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile
from typing import Any

from tables import TABLES, Row, ratio

from vit_jax.io import atomic, jsonfile
from vit_jax.io.installation import for_children
from vit_jax.report import plots

HERE = pathlib.Path(__file__).parent
ROOT, README, RESULTS = HERE.parents[1], HERE / "README.md", HERE / "results"


def place(row: Row) -> pathlib.Path:
    return RESULTS / f"{row.name}.json"


def result(row: Row) -> Any:
    return jsonfile.loads(place(row).read_bytes()) if place(row).exists() else None


def rendered(name: str) -> str:
    """A table in Markdown, which timm it compares with, and the commands."""
    table = TABLES[name]
    columns = table.columns.split(" | ")
    lines, commands, by = [columns, ["---"] * len(columns)], [], set[str]()
    for row in table.rows:
        found = result(row)
        by |= {found["timm"]} if isinstance(found, dict) and "timm" in found else set()
        lines += [[row.what, "not measured yet"]] if found is None else table.lines(row, found)
        program = "python experiments/benchmarks/" if ".py" in row.argv else "vit_jax "
        commands += [f"{program}{row.argv}  # {row.name}"] if row.argv else []
    cells = "\n".join(f"| {' | '.join(line + [''] * (len(columns) - len(line)))} |" for line in lines)
    cells += f"\n\nAgainst {'; '.join(sorted(by))}." if by else ""
    return cells + (f"\n\n```bash\n{chr(10).join(commands)}\n```" if commands else "")


def page(text: str) -> str:
    """README.md with what stands between ``<!-- NAME -->`` and ``<!-- end of NAME -->`` written anew."""
    for name in TABLES:
        first, last = f"<!-- {name} -->", f"<!-- end of {name} -->"
        new = f"{first}\n\n{rendered(name)}\n\n{last}" if first in text else ""
        text = re.sub(f"{first}.*?{last}", lambda _, new=new: new, text, flags=re.DOTALL)
    return text


def draw() -> None:
    """ratios.png: whatever has a ratio with its spread."""
    rows = [row for name in ("cpu", "others", "input") for row in TABLES[name].rows]
    found = {f"{row.what}; {row.against}".replace("`", ""): ratio(result(row) or {}) for row in rows}
    title = "On a CPU: median, 10th to 90th percentile"
    plots.ratios({what: values for what, values in found.items() if values}, title, HERE / "ratios.png")


def photographs(folder: pathlib.Path) -> pathlib.Path:
    """A folder of 256 JPEGs of about 110 kB, windows of the two photographs that scikit-learn brings."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_sample_images

    rng, images = np.random.default_rng(0), load_sample_images().images
    (folder / "a").mkdir()
    for i in range(256):
        image = images[i % 2]
        top, left = rng.integers((image.shape[0] - 394, image.shape[1] - 466))
        Image.fromarray(image[top : top + 395, left : left + 467]).save(folder / "a" / f"{i}.jpg", quality=98)
    return folder


def measure(row: Row) -> None:
    """Runs the process of a row and keeps its result, if it leaves one."""
    with tempfile.TemporaryDirectory() as folder:
        new = pathlib.Path(folder, "result.json")
        given = {"photographs": photographs(new.parent)} if "{" in row.argv else {}
        first, *words = shlex.split(row.argv.format(**given))
        program = [str(HERE / first)] if first.endswith(".py") else ["-m", "vit_jax", first]
        command = [sys.executable, *program, *words, "--json", str(new)]
        done = subprocess.run(command, cwd=ROOT, env=os.environ | for_children())
        found = jsonfile.loads(new.read_bytes()) if done.returncode == 0 else None
    for estimate in found["models"] if isinstance(found, dict) and "models" in found else ():
        del estimate["entries"]  # hundreds, which nobody reads here
    if found is not None:
        atomic.write_text(place(row), jsonfile.dumps(found))


def main() -> None:
    every = {row.name: row for table in TABLES.values() for row in table.rows}
    tables = {name: table.rows for name, table in TABLES.items()}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = [*tables, *every]
    parser.add_argument("--only", nargs="*", choices=known, metavar="NAME", help="tables or rows; no name: none")
    parser.add_argument("--again", action="store_true", help="forget their results first")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write all results there, too")
    args = parser.parse_args()
    only = list(every) if args.only is None else args.only
    chosen = [row for name in only for row in tables.get(name) or (every[name],) if row.argv]
    for row in chosen if args.again else ():
        place(row).unlink(missing_ok=True)
    for row in chosen:
        if not place(row).exists():
            print(f"{row.name}: {row.argv}", flush=True)
            measure(row)
            atomic.write_text(README, page(README.read_text(encoding="utf-8")))
    atomic.write_text(README, page(README.read_text(encoding="utf-8")))
    draw()
    if args.json:
        found = {name: result(row) for name, row in every.items()}
        atomic.write_text(args.json, jsonfile.dumps(found))
    if missing := [row.name for row in chosen if not place(row).exists()]:
        sys.exit(f"not measured, for the reasons above: {', '.join(missing)}")


if __name__ == "__main__":
    main()
