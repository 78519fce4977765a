"""The shape of the code: imports point one way, every module has its test, files stay short, nothing is unpickled."""

import ast
import collections
import functools
import gc
import inspect
import json
import pathlib
import re

import vit_jax
from vit_jax.evals import EvalContext, Evaluator
from vit_jax.evals.base import DataInfo
from vit_jax.models import ImageModel, ImageTextModel
from vit_jax.objectives import Objective, Pairs, PerExample
from vit_jax.optim.sam import SharpnessAware

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "vit_jax"
MODULES = sorted(PACKAGE.rglob("*.py"))
TIERS = (
    ("types", "trees", "interrupts", "architectures"), ("checks",), ("io",), ("imports",), ("configfile",), ("config",),
    ("loggers", "hosts"),
    ("sharding", "metrics"), ("data", "augment", "kernels"), ("layers",), ("models",),
    ("losses",), ("objectives",), ("optim",), ("checkpoint", "report", "decoding"), ("evals", "convert"), ("compress",),
    ("train",),
    ("predict", "explain", "create", "find", "plan", "publish"), ("export", "score", "bench"), ("launch", "api"),
    ("cli",),
    ("__main__",),
)  # fmt: skip
"""A module imports from its own package and from tiers to the left, never from a neighbour in its tier."""
RANK = {unit: i for i, tier in enumerate(TIERS) for unit in tier}


def name(path: pathlib.Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@functools.cache
def tree(path: pathlib.Path) -> ast.Module:
    gc.disable()  # Python up to 3.11.8 miscounts recursion where the collector runs inside (python/cpython#106905)
    try:
        return ast.parse(path.read_text(encoding="utf-8"), str(path))
    finally:
        gc.enable()


def imported(module: ast.AST) -> list[str]:
    """Dotted names of everything imported anywhere in the module, also inside functions."""
    found = []
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def upward(importer: str, names: list[str]) -> list[str]:
    """Those of ``names`` that a module called ``importer`` may not import."""
    unit = [*importer.split("."), "__init__"][1]
    wrong = []
    for other in names:
        parts = other.split(".")
        if parts[0] != "vit_jax" or len(parts) == 1 or parts[1] in (unit, "__version__"):
            continue
        if unit not in RANK or parts[1] not in RANK or RANK[parts[1]] >= RANK[unit]:
            wrong.append(other)
    return wrong


def for_checkers(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def test_imports_point_one_way():
    wrong = {name(path): upward(name(path), imported(tree(path))) for path in MODULES if name(path) != "vit_jax"}
    assert {module: names for module, names in wrong.items() if names} == {}
    package = tree(PACKAGE / "__init__.py")  # its public names: for type checkers, and imported when they are used
    assert upward("vit_jax", imported(ast.Module([n for n in package.body if not for_checkers(n)], []))) == []


def public(module: ast.Module) -> set[str]:
    """Public names of the package that the module uses, ``vit_jax.train`` or ``from vit_jax import train``."""
    found = {i.removeprefix("vit_jax.") for i in imported(module) if i.startswith("vit_jax.")}
    for node in ast.walk(module):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("vj", "vit_jax"):
            found.add(node.attr)
    return found & set(vit_jax.PUBLIC)


def test_the_functions_of_the_package_are_for_those_above():
    """The command line uses them as everybody does; below it a module names another one, of a tier to its left."""
    below = [path for path in MODULES if name(path) != "vit_jax" and not name(path).startswith("vit_jax.cli")]
    assert {name(path): public(tree(path)) for path in below if public(tree(path))} == {}
    assert public(ast.parse("from vit_jax import train, config")) == {"train"}
    assert public(ast.parse("import vit_jax as vj\nvj.train(1); vj.__version__")) == {"train"}
    assert public(ast.parse("from vit_jax.train import loop\nfrom vit_jax.convert import load")) == set()


def test_the_rule_itself():
    assert upward("vit_jax.layers.mlp", ["vit_jax.sharding", "vit_jax.layers.norm", "jax.numpy", "vit_jax"]) == []
    assert upward("vit_jax.layers.mlp", ["vit_jax.models.vit.ViT"]) == ["vit_jax.models.vit.ViT"]
    assert upward("vit_jax.data.loader", ["vit_jax.augment.Augment"]) != []  # a neighbour
    assert upward("vit_jax", ["vit_jax.types"]) != []  # the package itself stays light
    assert upward("vit_jax.nowhere", ["vit_jax.types"]) != []  # a new package must be given its place
    inside = ast.parse("def f():\n import vit_jax.cli\n from vit_jax.train import loop")
    assert imported(inside) == ["vit_jax.cli", "vit_jax.train.loop"]


def test_every_module_has_its_test():
    modules = [p.relative_to(PACKAGE) for p in MODULES if p.stem not in ("__init__", "__main__")]
    mirrors = [ROOT / "tests" / module.with_name(f"test_{module.name}") for module in modules]
    assert [str(mirror.relative_to(ROOT)) for mirror in mirrors if not mirror.is_file()] == []


def test_files_and_functions_are_short():
    files = [p for folder in ("vit_jax", "tests", "configs", "experiments") for p in (ROOT / folder).rglob("*.py")]
    lengths = {str(p.relative_to(ROOT)): len(p.read_text(encoding="utf-8").splitlines()) for p in files}
    assert {k: v for k, v in lengths.items() if v > 500} == {}
    package = sorted(v for k, v in lengths.items() if k.startswith("vit_jax"))
    assert package[len(package) // 2] <= 150
    functions = {
        f"{name(p)}.{node.name}": node.end_lineno - node.lineno + 1
        for p in MODULES
        for node in ast.walk(tree(p))
        if isinstance(node, ast.FunctionDef)
    }
    limit = {"vit_jax.train.loop.run": 80}  # the one loop reads best in one piece
    assert {k: v for k, v in functions.items() if v > limit.get(k, 60)} == {}


def asked_for(module: ast.Module) -> list[str]:
    """``getattr(x, "name", default)`` and ``hasattr(x, "name")`` of attributes that a protocol here declares."""
    found = []
    for node in ast.walk(module):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
            continue
        doubtful = node.func.id == "hasattr" or (node.func.id == "getattr" and len(node.args) == 3)
        if doubtful and isinstance(node.args[1], ast.Constant) and node.args[1].value in DECLARED:
            found.append(f"line {node.lineno}: {ast.unparse(node)}")
    return found


PROTOCOLS = (Objective, PerExample, Pairs, Evaluator, EvalContext, DataInfo, ImageModel, ImageTextModel, SharpnessAware)
DECLARED = {
    attribute
    for protocol in PROTOCOLS
    for base in protocol.__mro__
    if base.__module__.startswith("vit_jax")
    for attribute in {*vars(base), *inspect.get_annotations(base)}
    if not attribute.startswith("_")
}


def test_a_protocol_is_not_found_out_by_asking():
    """What objectives, evaluators and models have, their base classes say; nobody tries whether it is there."""
    assert {"output_activation", "min_batch_size", "data", "encoder", "num_classes", "m"} <= DECLARED
    assert {name(path): asked_for(tree(path)) for path in MODULES if asked_for(tree(path))} == {}
    assert len(asked_for(ast.parse("getattr(o, 'views', 1)\nhasattr(e, 'data')\ngetattr(o, 'views')"))) == 2


def test_one_place_knows_the_platform():
    """What is traced may be for a topology that is not here: ``sharding.platform`` says which platform it is for."""
    found = [name(path) for path in MODULES if "default_backend" in path.read_text(encoding="utf-8")]
    assert found == ["vit_jax.sharding"]


def reads_text(module: ast.Module) -> list[str]:
    """Calls that read or write text without :mod:`vit_jax.io`: of encodings, line ends and surrogates they know less.

    The lines of an error's message are no file's, and what was dumped here is no stranger's.
    """
    own = {id(n.value) for n in ast.walk(module) if isinstance(n, ast.Subscript)}
    found = []
    for node in ast.walk(module):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        call, on = node.func.attr, ast.unparse(node.func.value)
        foreign = on == "json" and call in ("load", "loads") and "json.dumps(" not in ast.unparse(node)
        lines = call == "splitlines" and id(node) not in own
        if foreign or lines or call == "read_text" or (call == "write_text" and on != "atomic"):
            found.append(f"line {node.lineno}: {ast.unparse(node)}")
    return found


def test_one_reader_and_one_writer_of_text():
    outside = [path for path in MODULES if not name(path).startswith("vit_jax.io")]
    assert {name(path): reads_text(tree(path)) for path in outside if reads_text(tree(path))} == {}
    assert (
        len(reads_text(ast.parse("p.read_text()\njson.load(f)\nt.splitlines()\np.write_text(t)\njson.loads(t)"))) == 5
    )
    assert reads_text(ast.parse("str(e).splitlines()[0]\njson.loads(json.dumps(x))\natomic.write_text(p, t)")) == []


def test_one_lister_of_images():
    """Whoever lists folders by itself has its own idea of hidden files, links and suffixes."""
    words = ("os.walk(", ".rglob(", "os.scandir(", ".glob(")
    users = {name(p) for p in MODULES if any(word in p.read_text(encoding="utf-8") for word in words)}
    others = {
        "vit_jax.io.hub",
        "vit_jax.io.cache",
        "vit_jax.io.files",
        "vit_jax.io.store",
        "vit_jax.data.sources.shards",
        "vit_jax.bench.breakdown",  # of what JAX's profiler wrote
    }
    assert users <= {"vit_jax.io.images", "vit_jax.io.mirror", "vit_jax.publish.push", *others}, users


CONCRETE = {
    "ViT", "Mixer", "MonarchMixer", "Vim", "MambaMixer", "Stages", "ConvNeXt", "HorNet", "NFResNet", "MobileNet",
    "TwoTower", "CoCa", "TextTransformer", "TextDecoder", "ResNet", "Stitched", "LiFT",
}  # fmt: skip


def families(module: ast.Module) -> list[str]:
    """``isinstance(x, Model)`` of a concrete model, a line each."""
    calls = [n for n in ast.walk(module) if isinstance(n, ast.Call) and ast.unparse(n.func) == "isinstance"]
    named = r"\b({})\b".format("|".join(CONCRETE))
    return [f"line {n.lineno}: {ast.unparse(n)}" for n in calls if re.search(named, ast.unparse(n.args[1]))]


def test_families_of_models_are_the_affair_of_models_and_codecs():
    """Elsewhere a model is what its base class promises."""
    found = {name(path) for path in MODULES if families(tree(path))}
    inside = ("vit_jax.models", *(f"vit_jax.convert.{room}" for room in ("timm", "hf", "open_clip", "flax")))
    assert {module for module in found if not module.startswith(inside)} == set()
    assert len(families(ast.parse("isinstance(m, models.ViT)\nisinstance(m, (CoCa, str))\nisinstance(m, Model)"))) == 2


def statements(path: pathlib.Path) -> list[str]:
    """Lines of code: no docstrings, imports, comments or lone punctuation."""
    aside: set[int] = set()
    for node in ast.walk(tree(path)):
        text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if text or isinstance(node, ast.Import | ast.ImportFrom):
            aside.update(range(node.lineno, node.end_lineno + 1))
    lines = enumerate((line.strip() for line in path.read_text(encoding="utf-8").split("\n")), 1)
    return [line for i, line in lines if i not in aside and re.search(r"\w", line) and not line.startswith("#")]


def test_nothing_is_written_twice():
    """No six lines of code stand in two places; the options that training and evaluation batches share are declared."""
    places = collections.defaultdict(set)
    for path in MODULES:
        lines = statements(path)
        for i in range(len(lines) - 5):
            places[tuple(lines[i : i + 6])].add(f"{name(path)} {i}")
    twice = {frozenset(place.split()[0] for place in found) for found in places.values() if len(found) > 1}
    assert twice <= {frozenset({"vit_jax.data.loader"})}
    assert statements(PACKAGE / "data" / "classes.py")


def test_rooms_are_small():
    rooms = {p.parent for p in MODULES}
    assert {name(room / "x")[:-2]: n for room in rooms if (n := len(list(room.glob("*.py")))) > 20} == {}


def code(path: pathlib.Path) -> str:
    """The Python text of a module or a notebook."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return text
    cells = [c["source"] for c in json.loads(text)["cells"] if c["cell_type"] == "code"]
    return "\n".join("".join(c) for c in cells)


def users() -> list[pathlib.Path]:
    return [
        p
        for folder in ("experiments", "notebooks")
        for end in ("py", "ipynb")
        for p in (ROOT / folder).rglob(f"*.{end}")
    ]


def test_nobody_else_trains():
    """Experiments and notebooks hand values to the one loop; they never differentiate or update by themselves."""
    for path in users():
        for word in ("value_and_grad", "apply_updates", "jax.grad("):
            assert word not in code(path), f"{path.relative_to(ROOT)} calls {word}"


def unwanted(path: pathlib.Path) -> list[str]:
    """Imports of heavy frameworks and ways to run what a file holds, one a line."""
    module, found = tree(path), []
    roots = {i.split(".")[0] for i in imported(module)}
    found += sorted(roots & {"tensorflow", "pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"})
    top = ast.Module([n for n in module.body if not isinstance(n, ast.FunctionDef | ast.ClassDef)], [])
    found += sorted({i.split(".")[0] for i in imported(top)} & {"torch", "timm", "open_clip", "transformers"})
    for node in ast.walk(module):
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle" and not _is_false(node.value):
            found.append("allow_pickle")
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec"):
            found.append(node.func.id)
    return found


def test_no_heavy_frameworks_and_no_pickle():
    wrong = {name(path): unwanted(path) for path in MODULES}
    assert {module: found for module, found in wrong.items() if found} == {}


def test_the_rule_against_pickle_itself(tmp_path):
    bad, good = tmp_path / "bad.py", tmp_path / "good.py"
    bad.write_text("import pickle\nimport torch\nnp.load(f, allow_pickle=True)\nexec('1')\ndef f():\n import timm\n")
    assert sorted(unwanted(bad)) == ["allow_pickle", "exec", "pickle", "torch"]
    good.write_text("np.load(f, allow_pickle=False)\ndef f():\n import torch\n")
    assert unwanted(good) == []


def _is_false(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


def test_no_test_hides_another():
    """Same file name twice is fine in different folders; a stray ``__init__.py`` would make packages of them."""
    assert list((ROOT / "tests").rglob("__init__.py")) == []
