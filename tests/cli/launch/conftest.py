"""Programs that are not there: stand-ins on a PATH of their own that note their words and answer as they are told."""

import dataclasses
import os
import pathlib
import shlex

import pytest

SCRIPT = """\
#!/bin/sh
for word in {name} "$@"; do printf '%s\\037' "$word"; done >>{log}
printf '\\n' >>{log}
rule=none
case "$*" in
{rules}
esac
case {reads} in yes) /bin/cat >{folder}/{name}.stdin ;; esac
[ $rule != none ] || exit 0
n=0
[ ! -e {folder}/$rule.n ] || n=$(/bin/cat {folder}/$rule.n)
echo $((n + 1)) >{folder}/$rule.n
while [ ! -e {folder}/$rule.$n.status ]; do n=$((n - 1)); done
/bin/cat {folder}/$rule.$n.out
/bin/cat {folder}/$rule.$n.err >&2
exit "$(/bin/cat {folder}/$rule.$n.status)"
"""


@dataclasses.dataclass
class StandIns:
    """``bin``, the only folder on the PATH, and what was called."""

    folder: pathlib.Path

    def add(self, name, rules=None, reads=False):
        """A program: pattern of its words -> answers in turn, the last for good: ``(status, output, errors)``."""
        cases = []
        for i, (pattern, answers) in enumerate((rules or {}).items()):
            rule = f"{name}-{i}"
            cases.append(f"*{shlex.quote(pattern)}*) rule={rule} ;;")
            for n, answer in enumerate(answers):
                status, out, err = (answer, "", "") if isinstance(answer, int) else (*answer, "")[:3]
                (self.folder / f"{rule}.{n}.status").write_text(str(status))
                (self.folder / f"{rule}.{n}.out").write_text(out)
                (self.folder / f"{rule}.{n}.err").write_text(err)
        program = self.folder / "bin" / name
        program.write_text(
            SCRIPT.format(
                name=name,
                log=self.folder / "log",
                folder=self.folder,
                rules="\n".join(cases),
                reads="yes" if reads else "no",
            )
        )
        program.chmod(0o755)

    def calls(self):
        """Every call as a shell takes it."""
        log = self.folder / "log"
        lines = log.read_text().split("\037\n")[:-1] if log.exists() else []
        return [shlex.join(line.split("\037")) for line in lines]

    def stdin(self, name):
        """What a program read last."""
        return (self.folder / f"{name}.stdin").read_text()


@pytest.fixture
def stand_ins(tmp_path, monkeypatch):
    folder = tmp_path / "stand_ins"
    (folder / "bin").mkdir(parents=True)
    monkeypatch.setenv("PATH", str(folder / "bin"))
    return StandIns(folder)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a configuration file of the user's, and the current one."""
    here = tmp_path / "here"
    (here / "my").mkdir(parents=True)
    (here / "my" / "config.py").write_text('"""Mine."""\n\n\ndef get_config():\n    return {}\n')
    monkeypatch.chdir(here)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return here


GOLDEN = pathlib.Path(__file__).parent / "golden"


@pytest.fixture
def golden(place):
    """Compares a text with a file, without what is of this machine; writes it where the environment says so."""

    def compare(name, text, *own):
        for mine, instead in own:
            text = text.replace(mine, instead)
        if os.environ.get("VIT_JAX_WRITE_GOLDEN"):
            (GOLDEN / name).write_text(text)
        assert text == (GOLDEN / name).read_text()

    return compare
