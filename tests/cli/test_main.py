"""Exit status, usage, overrides and start-up of the command line."""

import errno
import os
import pathlib
import subprocess
import sys
import warnings

import jax
import pytest

import vit_jax
from vit_jax import cli
from vit_jax.cli import COMMANDS, main
from vit_jax.io import retry, store
from vit_jax.launch import runtime
from vit_jax.types import Stopped, Stuck, UsageError, UserError

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize(
    "argv", [[], *([name] for name in COMMANDS), ["data", "check"], ["bench", "forward"]], ids=" ".join
)
def test_help(argv, capsys):
    with pytest.raises(SystemExit) as e:
        main([*argv, "--help"])
    assert e.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: {' '.join(['vit_jax', *argv])}")
    if not argv:
        assert all(name in out and module.HELP in out for name, module in COMMANDS.items())


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        ([], "required: COMMAND"),
        (["trian"], "invalid choice: 'trian'"),
        (["train"], "required: --workdir"),
        (["train", "--config", "a", "--workdir", "b", "--confg.seed=1"], "unrecognized argument '--confg.seed=1'"),
        (["train", "--config", "a", "--workdir", "b", "--config.seed"], "--config.seed needs a value"),
        (
            ["train", "--config", "a", "--workdir", "b", "extra"],
            "argument 'extra'; see vit_jax train --help",
        ),
        (["train", "--config", "a", "--work", "b"], "required: --workdir"),  # no abbreviations
        (["models", "--config.seed=1"], "unrecognized argument '--config.seed=1'"),
        (["predict", "--workdir", "a", "--checkpoint", "b", "c"], "not allowed with argument"),
        (["data", "check"], "required: path"),
        (["bench", "forward", "--batch", "x"], "'x' is no whole number"),
    ],
)
def test_wrong_usage_is_status_2(argv, text, capsys):
    with pytest.raises(SystemExit) as e:
        main(argv)
    assert e.value.code == 2
    assert text in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "status", "text"),
    [
        (["train", "--config", "configs/no.py", "--workdir", "w"], 2, "vit_jax train: no config file 'configs/no.py'"),
        (["models", "vit_b61"], 2, "vit_jax models: unknown model 'vit_b61'; did you mean 'vit_b16'"),
        (["evaluate", "--workdir", "/no/run"], 1, "vit_jax evaluate: '/no/run' holds no run: config.json is missing"),
        (
            ["predict", "--workdir", "/no/run", "/no/image.png"],
            1,
            "vit_jax predict: no such file or folder: '/no/image",
        ),
        (["data", "check", "folder:/no/images"], 1, "/no/images"),
        (["bench", "forward", "--model", "mixer_b16"], 1, "compares ViTs, and 'mixer_b16' is none"),
    ],
)
def test_mistakes_are_one_sentence(argv, status, text, capsys):
    assert main(argv) == status
    out, err = capsys.readouterr()
    assert text in err and err.count("\n") == 1 and out == ""
    with pytest.raises(UserError):
        main([*argv[:1], "--verbose", *argv[1:]])


def test_version(capsys):
    with pytest.raises(SystemExit) as e:
        main(["--version"])
    assert e.value.code == 0 and capsys.readouterr().out == f"vit_jax {vit_jax.__version__}\n"


def test_overrides_in_both_forms_keep_their_order(monkeypatch):
    seen = []
    monkeypatch.setattr(COMMANDS["train"], "run", lambda args: seen.append(args.overrides) or 0)
    words = [
        "--config.a.b=1",
        "--config.c",
        "x y",
        "--config.d=a=b",
        "--config.e",
        "-1",
        "--config.a.b=2",
        "--config.f=",
    ]
    assert main(["train", *words[:3], "--config", "F", "--workdir", "W", *words[3:]]) == 0
    assert seen == [[("a.b", "1"), ("c", "x y"), ("d", "a=b"), ("e", "-1"), ("a.b", "2"), ("f", "")]]


def test_ctrl_c_is_a_failure_and_says_so(monkeypatch, capsys):
    def stop(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.models, "run", stop)
    assert main(["models"]) == 1
    assert capsys.readouterr().err == "vit_jax models: interrupted.\n"


@pytest.mark.parametrize("words", [["models"], ["models", "--verbose"]])
def test_a_process_with_threads_that_never_end_leaves_at_once(monkeypatch, capsys, words):
    def stop(_):
        raise Stuck("example 3 is being read.")

    left = []
    monkeypatch.setattr(cli.models, "run", stop)
    monkeypatch.setattr(os, "_exit", left.append)
    cli.main(words)
    assert left == [75] and "vit_jax models: example 3 is being read." in capsys.readouterr().err


def test_what_was_given_up_is_not_warned_about(monkeypatch):
    """A checkpoint is written by coroutines: where the disk is full, the sentence is enough."""

    async def write():
        pass

    monkeypatch.setattr(cli.models, "run", lambda _: 0 if write() else 1)
    with warnings.catch_warnings(record=True) as seen:
        assert main(["models"]) == 0
    assert seen == []


@pytest.mark.parametrize(
    ("module", "says"), [("vit_jax.cli.options", ""), ("argparse", ""), ("numpy._core.multiarray", " models")]
)
def test_ctrl_c_while_modules_are_imported(module, says):
    """numpy prints a traceback of what falls into its import, and makes another error of it."""
    code = f"""if True:
        import os, signal, sys

        def press(event, args):
            if event == "import" and args[0] == {module!r}:
                os.kill(os.getpid(), signal.SIGINT)

        sys.addaudithook(press)
        from vit_jax.__main__ import main

        sys.argv[1:] = ["models", "vit_ti16"]
        sys.exit(main())
    """
    done, _ = python("-c", code)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"vit_jax{says}: interrupted.\n")


def python(*argv):
    env = {k: v for k, v in os.environ.items() if not k.startswith("COV")}
    begun = os.times().children_user
    done = subprocess.run([sys.executable, *argv], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
    return done, os.times().children_user - begun


def test_start_up_is_quick():
    """CPU time, as the machine may be busy; --help does not import jax."""
    done, seconds = python("-X", "importtime", "-m", "vit_jax", "--help")
    assert done.returncode == 0 and done.stdout.startswith("usage: vit_jax")
    assert seconds < 1
    assert not [line for line in done.stderr.splitlines() if line.split("|")[-1].strip() in ("jax", "numpy", "flax")]


def test_a_failing_command_is_one_sentence_and_its_status():
    done, _ = python("-m", "vit_jax", "models", "vit_b61")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("vit_jax models: unknown model 'vit_b61'; did you mean 'vit_b16'")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(36, "File name too long", "x" * 999), "File name too long.\n"),
        (PermissionError(13, "Permission denied", "/root/x"), "/root/x: Permission denied.\n"),
        (MemoryError(), "there is not enough memory; take a smaller batch"),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes."), "there is not enough memory"),
        (BrokenPipeError(32, "Broken pipe"), "nobody reads the output any more"),
    ],
)
def test_what_the_machine_says_is_a_sentence(monkeypatch, capsys, error, says):
    def fail(args):
        raise error

    monkeypatch.setattr(cli.models, "run", fail)
    assert main(["models"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("vit_jax models: ") and says in err and len(err) < 300
    monkeypatch.setattr(cli.models, "run", lambda args: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # a mistake of this package is not hidden
        main(["models"])


@pytest.mark.parametrize(
    "line",
    [
        "models vit_b16 --size 1000000", "models vit_b16 --size 0", "models|", "models vit_b16 --num_classes -1",
        "models vit_b16 --json|", "bench forward --batch 0", "bench train --rounds -1", "bench train --size nan",
        "bench loss --chunk 0", "bench loss --dim 0", "bench loss --batch -5", "bench loss --loss|",
        "bench kernels --inputs 0", "bench kernels --outputs 99999999999", "bench kernels --rows 0",
        "bench kernels --rows|",
        "bench kernels --rows 1,,2", "bench kernels --plot|", "bench input --canvas 0", "bench input --canvas 1000000",
        "bench input --batch 0", "bench input --data|", "data pack fake:4x4x2 s-{}.tar --shard_size 0", "data check|",
        "data pack fake:4x4x2|", "data pack fake:4x4x2 s-{}.tar --shard_size -1", "data tokenizer digits_pairs|",
        "data tokenizer digits_pairs t --vocab_size nan", "data check fake:4x4x2 --json|",
        "export --checkpoint| o --to onnx",
        "export --checkpoint m| --to onnx", "convert| o --to timm", "convert m| --to timm",
        "embed --checkpoint m --output| x",
        "embed --checkpoint| --output e.npy x", "embed --checkpoint m --output e.npy|", "evaluate --workdir|",
        "evaluate --workdir m --checkpoint|", "evaluate --workdir m --json|", "predict --checkpoint| x.png",
        "predict --checkpoint m|", "predict --checkpoint m x.png --top 0", "predict --checkpoint m x.png --top 1e999",
        "predict --checkpoint m x.png --text|", "predict --checkpoint m x.png --decoder|",
        "train --config| --workdir w",
        "train --config c.py --workdir|", "train --config c.py --workdir " + "w" * 256,
        "export --checkpoint m\0 o --to onnx",
    ],
)  # fmt: skip
def test_no_argument_is_empty_or_out_of_range(line, capsys, tmp_path, monkeypatch):
    """``|`` stands for an argument that is empty, as a variable of the shell is that was not set."""
    monkeypatch.chdir(tmp_path)
    words = [word for part in line.replace("|", " | ").split() for word in ([""] if part == "|" else [part])]
    try:
        status = main(words)
    except SystemExit as e:
        status = e.code
    err = capsys.readouterr().err
    assert status == 2 and "Traceback" not in err and len(err.splitlines()[-1]) < 300
    assert not list(tmp_path.iterdir())


class Watch:
    """What :mod:`vit_jax.launch.watch` has, without other hosts."""

    def __init__(self, index):
        self.index, self.stopped, self.parted, self.doubted = index, [], False, False

    def doubt(self):
        self.doubted = True

    def stop(self, reason, status):
        self.stopped.append((reason, status, self.doubted))
        raise SystemExit(status)  # which the real one does from within

    def tell(self, line):
        pass

    def finish(self):
        self.parted = True


@pytest.fixture
def among(monkeypatch):
    """``among(index)``: the watch of a host of several, which the next command joins."""
    asked = []

    def joined(index):
        watch = Watch(index)
        monkeypatch.setattr(runtime, "join", lambda alone: asked.append(alone) or watch)
        watch.alone = asked
        return watch

    return joined


CHECK = ["data", "check", "fake:4x8x2"]


@pytest.mark.parametrize(("index", "lines"), [(0, 1), (1, 0)])
def test_the_first_of_several_hosts_runs_what_gains_nothing_from_the_others(among, capsys, index, lines):
    watch = among(index)
    assert main(CHECK) == 0 and watch.parted and watch.alone == [True]
    assert len(capsys.readouterr().out.splitlines()) == lines


@pytest.mark.parametrize("index", [0, 1])
def test_a_run_that_all_hosts_stop_is_said_by_the_first(among, capsys, monkeypatch, index):
    def stop(_):
        print("hello")
        raise Stopped("stopped at step 3 of 9; the same command resumes there.")

    watch = among(index)
    monkeypatch.setattr(COMMANDS["train"], "run", stop)
    assert main(["train", "--config", "digits", "--workdir", "w"]) == 75 and watch.parted and watch.alone == [False]
    said = capsys.readouterr()
    sentence = "vit_jax train: stopped at step 3 of 9; the same command resumes there.\n"
    assert (said.out, said.err) == (("hello\n", sentence) if index == 0 else ("", ""))


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (UserError("no space."), ("no space.", 1, True)),
        (UsageError("unknown key."), ("unknown key.", 2, False)),
        (Stuck("a read never ends."), ("a read never ends.", 75, True)),
        (KeyboardInterrupt(), ("interrupted.", 1, False)),
        (TypeError("a\nfault"), ("TypeError: a fault", 1, True)),
        (jax.errors.JaxRuntimeError("Gloo failed"), ("JaxRuntimeError: Gloo failed", 1, True)),
    ],
)
def test_an_error_on_one_of_several_hosts_is_told_to_all(among, capsys, monkeypatch, error, told):
    def fail(_):
        raise error

    watch = among(1)
    monkeypatch.setattr(COMMANDS["train"], "run", fail)
    with pytest.raises(SystemExit):
        main(["train", "--config", "digits", "--workdir", "w"])
    assert watch.stopped == [told]
    assert ("Traceback" in capsys.readouterr().err) == (not isinstance(error, UserError | KeyboardInterrupt))


def test_what_was_tried_again_is_said_at_the_end(monkeypatch, capsys):
    """A store that fails once; the image that it holds is none."""
    store.write("memory://tried/a/x.png", b"no image")
    files, _ = store.file_system("memory://tried")
    real, errors = files.cat_file, [OSError(errno.EIO, "Input/output error")]

    def cat_file(*args, **more):
        if errors:
            raise errors.pop()
        return real(*args, **more)

    monkeypatch.setattr(retry, "WAITS", (0.0,))
    monkeypatch.setattr(files, "cat_file", cat_file)
    assert main(["data", "check", "folder:memory://tried"]) == 1
    assert capsys.readouterr().err.endswith("tried again after errors that passed: 1 time for memory://tried\n")


def test_a_value_with_a_space_is_no_image():
    found = cli.parse(["predict", "--workdir", "w", "--config.model.scales=(1, 2)", "a.jpg", "--config.seed", "1"])
    assert found.overrides == [("model.scales", "(1, 2)"), ("seed", "1")]
    assert ["a.jpg"] in vars(found).values()
