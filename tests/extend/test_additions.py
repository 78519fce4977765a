"""What an addition may touch: three files at most, and nothing of the loop."""

import ast
import itertools
import pathlib
import re

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]


def files() -> dict[str, list[str]]:
    folders = sorted(p for p in HERE.iterdir() if p.is_dir() and any(p.glob("*.py")))
    return {p.name: sorted(f"{p.name}/{f.name}" for f in p.glob("*.py")) for p in folders}


def test_an_addition_is_at_most_three_files_and_none_of_the_core():
    assert len(files()) == 9 and max(map(len, files().values())) <= 3
    for name in itertools.chain(*files().values()):
        text = (HERE / name).read_text(encoding="utf-8")
        modules = [n.module for n in ast.walk(ast.parse(text)) if isinstance(n, ast.ImportFrom)]
        assert not [m for m in modules if m.startswith("vit_jax.train")], name  # nor is anything patched
        assert not re.search(r"monkeypatch|setattr\(", text), name


def test_the_page_names_them():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = page[page.index("`tests/extend/` plays this through") :]
    assert sorted(re.findall(r"`(\w+/\w+\.py)`", table)) == sorted(itertools.chain(*files().values()))
    assert all((HERE / f"test_{name}.py").is_file() for name in files())
