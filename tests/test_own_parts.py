"""Parts of one's own from a file, on the command line: trained with, recorded, found again; never run unasked."""

import dataclasses
import hashlib
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

import vit_jax as vj
from tests import test_own_values
from vit_jax import checkpoint
from vit_jax.cli import main
from vit_jax.convert import read, run_folder

PARTS = pathlib.Path(test_own_values.__file__)
PLAIN = {**test_own_values.PLAIN, "plots": False}
DATA = {"path": "Shapes:24", "canvas": 8}
NAMED = {
    "imports": "parts.py",
    "objective": "Focal(gamma=1.0)",
    "evaluators": '("classify", "Confidence")',
    "model.mlp_linear": "Unit()",
    "optim.optimizer": "Signum(decay=0.8)",
    "augment.train": "Darken",
    "data.path": "Shapes:24",
    "data.val": "Shapes(6, first=24)",
}


def run(*argv):
    return main([str(word) for word in argv])


@pytest.fixture(scope="module", autouse=True)
def alone():
    """One device, as most have."""
    with pytest.MonkeyPatch.context() as patch:
        devices = jax.devices()
        patch.setattr(jax, "devices", lambda *_: devices[:1])
        patch.setattr(jax, "device_count", lambda *_: 1)
        yield


@pytest.fixture(scope="module")
def place(alone, tmp_path_factory):
    """A folder with the file of parts, a configuration, an image and the trained run."""
    folder = tmp_path_factory.mktemp("parts")
    shutil.copy(PARTS, folder / "parts.py")
    (folder / "plain.py").write_text(f"def get_config(): return {PLAIN!r}")
    Image.fromarray(np.full((8, 8, 3), 200, np.uint8)).save(folder / "x.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        words = [f"--config.{key}={value}" for key, value in NAMED.items()]
        assert run("train", "--config", "plain.py", "--workdir", "run", *words) == 0
    return folder


@pytest.fixture
def here(place, tmp_path, monkeypatch):
    """A copy of the folder's run, beside which the file of parts is still where it was."""
    shutil.copytree(place / "run", tmp_path / "run")
    shutil.copy(place / "x.png", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def stored(folder="run"):
    return json.loads(pathlib.Path(folder, "config.json").read_text())


def edit(folder, imports):
    """Has a run record other imports, in its checkpoint too."""
    file, meta = pathlib.Path(folder, "config.json"), next(pathlib.Path(folder).glob("checkpoints/*/meta/metadata"))
    file.write_text(json.dumps({**stored(folder), "imports": imports}))
    about = json.loads(meta.read_text())
    about.pop("checksum")
    about["config"]["imports"] = imports
    meta.write_text(json.dumps(about | {"checksum": checkpoint.text_sum(about)}))


def test_what_the_run_records(place, monkeypatch):
    raw = stored(place / "run")
    assert raw["objective"] == {"name": "Focal", "gamma": 1.0} and raw["optim"]["optimizer"]["name"] == "Signum"
    assert [e["name"] for e in raw["evaluators"]] == ["classify", "Confidence"]
    assert raw["model"]["mlp_linear"] == {"name": "Unit"} and raw["data"]["val"] == "Shapes(6, first=24)"
    (text,) = raw["imports"]
    assert text.startswith(f"{place}/parts.py#sha256=")


def test_every_command_takes_the_run_as_it_is(here, capsys):
    assert run("evaluate", "--workdir", "run") == 0 and "val/confidence" in capsys.readouterr().out
    assert run("predict", "--workdir", "run", "x.png") == 0 and "bright" in capsys.readouterr().out
    assert run("embed", "--workdir", "run", "--output", "e.npy", "x.png") == 0
    assert run("convert", "run", "ours", "--to", "vit_jax") == 0 and stored("ours")["imports"] == stored()["imports"]
    assert run("convert", "ours", "timm", "--to", "timm", "--linear", "dense", "--model", "vit") == 2  # is a run
    assert run("convert", "ours", "timm", "--to", "timm", "--linear", "dense") == 0
    assert run("export", "--workdir", "run", "--to", "stablehlo", "program") == 0
    assert run("push", "run", "hf://me/run", "--to", "vit_jax", "--dry_run") == 0
    shown = ["data", "preview", "Shapes:9", "--config", "run", "--out", "seen.png"]
    assert run(*shown) == 0 and "9 examples of 2 classes" in capsys.readouterr().out
    model, params, _ = vj.load("run")
    assert type(model.mlp_linear).__name__ == "Unit"
    jax.tree.map(np.testing.assert_array_equal, params, vj.load("ours").params)
    assert run("train", "--workdir", "run", "--dry_run") == 0
    assert run("config", "run") == 0 and "  Focal  " in capsys.readouterr().out


def test_evaluators_by_name_score_any_weights(here, place, capsys):
    scored = ["--data", "Shapes:9", "--evaluators", "Confidence"]
    assert run("evaluate", "--checkpoint", "run", *scored) == 0
    assert run("convert", "run", "timm.safetensors", "--to", "timm", "--linear", "dense") == 0
    capsys.readouterr()
    assert run("evaluate", "--checkpoint", "timm.safetensors", *scored, "--imports", place / "parts.py") == 0
    assert "val/confidence" in capsys.readouterr().out
    assert run("evaluate", "--checkpoint", "timm.safetensors", *scored) == 2
    assert "unknown evaluators[0] 'Confidence'" in capsys.readouterr().err
    with pytest.raises(vj.UsageError, match="data scores weights without the configuration of a run"):
        vj.evaluate("run", data="digits", changes={"seed": 1, "imports": ()})


def test_a_changed_file_is_a_note_once(place, here, capsys, caplog):
    """And the run goes on, with what the file says now."""
    shutil.copy(place / "parts.py", "parts.py")
    edit("run", [stored()["imports"][0].replace(str(place), str(here))])
    with open("parts.py", "a") as f:
        f.write("\n# more\n")
    note = f"{here}/parts.py has changed since the run was trained with it"
    assert run("predict", "--workdir", "run", "x.png") == 0 and caplog.text.count(note) == 1
    assert run("train", "--workdir", "run") == 0 and capsys.readouterr().out.count(note) == 1
    now = hashlib.sha256(pathlib.Path("parts.py").read_bytes()).hexdigest()
    assert stored()["imports"] == [f"{here}/parts.py#sha256={now}"]  # and that was all


@pytest.mark.parametrize("imports", [3, [3], {"evil.py": 1}, [["evil.py"]], [None], "", ["a\0b.py"], ["x" * 5000]])
def test_what_is_no_import(here, capsys, imports):
    file = pathlib.Path("run/config.json")
    file.write_text(json.dumps({**stored(), "imports": imports}))
    assert run("config", "run") == 2
    error = capsys.readouterr().err
    assert error.startswith("vit_jax config: ") and error.count("\n") == 1 and len(error) < 700


def test_a_file_that_is_gone(here, place, capsys):
    edit("run", [stored()["imports"][0].replace("parts.py", "gone.py")])
    commands = {
        "--imports": ["predict", "--workdir", "run", "x.png"],
        "--config.imports": ["train", "--workdir", "run"],
    }
    for named, words in commands.items():
        assert run(*words) == 2
        said = capsys.readouterr().err
        assert f"{place}/gone.py, which the run run imports, does not exist any more; name where it is now:" in said
        assert f"{named}=" in said.replace(" PLACE", "=PLACE")
        more = ["--dry_run"] if words[0] == "train" else []
        assert run(*words, f"{named}={place}/parts.py", *more) == 0


COMMANDS = (
    ["predict", "--workdir", "run", "x.png"],
    ["embed", "--workdir", "run", "--output", "e.npy", "x.png"],
    ["convert", "run", "out", "--to", "vit_jax"],
    ["export", "--workdir", "run", "--to", "stablehlo", "out"],
    ["push", "run", "hf://me/run", "--dry_run"],
    ["evaluate", "--workdir", "run"],
    ["evaluate", "--checkpoint", "run", "--data", "digits"],
    ["train", "--workdir", "run"],
    ["train", "--config", "run", "--workdir", "new"],
    ["train", "--config", "run/config.json", "--workdir", "new", "--dry_run"],
    ["config", "run"],
    ["train", "--config", "digits", "--workdir", "new", "--config.init=run"],
)


@pytest.mark.parametrize(
    ("words", "name"),
    [(words, "HERE/run/evil.py") for words in COMMANDS] + [(COMMANDS[0], name) for name in ("evil.py", "evil")],
    ids=lambda part: " ".join(part) if isinstance(part, list) else part,
)
def test_code_that_came_with_a_run_is_not_run(here, capsys, monkeypatch, words, name):
    pathlib.Path("run/evil.py").write_text("import pathlib\npathlib.Path('trace').touch()\n")
    monkeypatch.syspath_prepend(str(here / "run"))
    edit("run", [name.replace("HERE", str(here))])
    assert run(*words) == 2
    assert "code of others is not run unasked" in capsys.readouterr().err
    assert not pathlib.Path("trace").exists()


def test_nor_is_what_a_fetched_run_names(here, place, monkeypatch):
    """Not even a file of mine; but what I name now is run."""
    monkeypatch.setattr(read, "fetch", lambda _: here / "run")
    for address in ("hf://org/run", "https://host/run", "gs://bucket/run"):
        with pytest.raises(
            vj.UsageError, match=f"the run {address} imports '{place}/parts.py' and was fetched: code of"
        ):
            vj.load(address)
    assert run("predict", "--checkpoint", "hf://org/run", "x.png", "--imports", place / "parts.py") == 0
    report = vj.evaluate(
        "hf://org/run", data="digits", evaluators=["Confidence"], changes={"imports": place / "parts.py"}
    )
    assert report.metrics["confidence"] > 0
    with pytest.raises(vj.UsageError, match="was fetched"):
        vj.train({**PLAIN, "init": "hf://org/run", "data": {"path": "fake:24x8x2", "canvas": 8}}, "new")


def test_a_configuration_file_is_an_import_by_itself(here, capsys):
    """Its classes, and those of modules beside it, as values or as text."""
    shutil.copy(PARTS, "beside.py")
    pathlib.Path("mine.py").write_text(
        "from beside import Focal, Shapes\nimport dataclasses\n"
        "@dataclasses.dataclass(frozen=True)\nclass Sharper(Focal):\n  by: float = 0.5\n"
        f"def get_config(): return {{**{PLAIN!r}, 'objective': Sharper(3.0), 'data': {DATA!r}}}"
    )
    assert run("config", "mine.py", "--json", "all.json") == 0 and "*objective.gamma  " in capsys.readouterr().out
    raw = json.loads(pathlib.Path("all.json").read_text())
    assert raw["objective"] == {"name": "Sharper", "gamma": 3.0, "by": 0.5}
    assert [text.partition("#")[0] for text in raw["imports"]] == [f"{here}/{name}.py" for name in ("beside", "mine")]
    pathlib.Path("more.py").write_text("from beside import Signum")  # of one's own, and not in place of the file's
    more = ["--config.imports=more.py", "--config.optim.optimizer=Signum", "--json", "all.json"]
    assert run("config", "mine.py", *more) == 0
    assert len(json.loads(pathlib.Path("all.json").read_text())["imports"]) == 3


def test_a_run_of_python_is_found_again_by_its_class(here, place, capsys):
    """Objects that were handed in are of classes of these names."""
    raw = stored()
    raw["objective"] = {"python": "__main__.Focal", "gamma": 1.0}
    raw["model"]["mlp_linear"] = {"python": "elsewhere.Unit"}
    pathlib.Path("run/config.json").write_text(json.dumps({**raw, "imports": []}))
    assert run("evaluate", "--workdir", "run") == 2
    assert "name the file of its class, --imports FILE or --config.imports=FILE" in capsys.readouterr().err
    assert run("config", "run", f"--config.imports={place}/parts.py") == 0
    assert "*objective.gamma  " in capsys.readouterr().out


def test_weights_of_a_run_with_parts_are_where_another_starts(here, place, capsys):
    """With the classes of both; a model that the weights name is of the run's file."""
    assert run("train", "--config", place / "plain.py", "--workdir", "new", "--config.init=run", "--config.model=init",
               "--config.objective=init", "--config.data.path=fake:24x8x2", "--dry_run") == 0  # fmt: skip
    found = read.load("run")
    with found as stored_run:
        assert [i.place for i in stored_run.imports] == [f"{place}/parts.py"]
        again = dataclasses.replace(stored_run, config=run_folder.run_config(stored_run))
    assert run_folder.run_config(again)["imports"] == stored()["imports"]


def test_mistakes_are_sentences(here, place, capsys):
    words = [
        "train",
        "--config",
        place / "plain.py",
        "--workdir",
        "new",
        "--dry_run",
        f"--config.imports={place}/parts.py",
    ]
    for more, text in {
        "--config.objective=Focl": "unknown config.objective 'Focl'; did you mean 'Focal'",
        "--config.objective=Confidence": f"Confidence of {place}/parts.py is no vit_jax.objectives.base.Objective.",
        "--config.imports=prts.py": "there is no file 'prts.py'",
        "--config.data.path=Shapes": f"{place}/parts.py: TypeError: ",
    }.items():
        assert run(*words, more) == 2
        assert text in capsys.readouterr().err
