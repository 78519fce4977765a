"""Programs of others: what they print, and how their failures are said."""

import sys

import pytest

from vit_jax.launch import tools
from vit_jax.types import UserError


def program(monkeypatch, tmp_path, text):
    (tmp_path / "docker").write_text(f"#!/bin/sh\n{text}\n")
    (tmp_path / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))


def test_output_is_as_it_is(monkeypatch, tmp_path):
    program(monkeypatch, tmp_path, "read line; printf ' %s\\377\\n\\n' \"$line\"; echo no >&2")
    assert tools.output(["docker"], stdin="words\n") == " words\udcff\n\n"


@pytest.mark.parametrize(
    ("errors", "last"),
    [
        ("one\\n  two.\\n\\n", ": two"),
        ("ERROR: first\\nsecond\\n", ": ERROR: first"),
        ("", ""),
        ("x" * 999, f": {'x' * 300}"),
    ],
)
def test_a_failure_has_the_line_that_matters(errors, last, monkeypatch, tmp_path):
    program(monkeypatch, tmp_path, f"printf '{errors}' >&2; exit 3")
    with pytest.raises(tools.Failed) as e:
        tools.output(["docker", "push", "--quiet", "name"], "it is there")
    assert str(e.value) == f"docker push name failed with exit status 3{last}; it is there."
    assert len(e.value.said) == len(errors.replace("\\n", "\n"))


def test_what_takes_too_long(monkeypatch, tmp_path):
    program(monkeypatch, tmp_path, "exec /bin/sleep 9")
    with pytest.raises(tools.Failed, match=r"^docker ps did not end within 0 s; look\.$"):
        tools.output(["docker", "ps"], "look", seconds=0.1)


def test_what_is_shown_is_not_read(monkeypatch, tmp_path, capfd):
    program(monkeypatch, tmp_path, 'echo "$@"; echo bad >&2; exit "$1"')
    tools.shown(["docker", "0"])
    with pytest.raises(tools.Failed, match=r"^docker 1 failed with exit status 1; look\.$"):
        tools.shown(["docker", "1"], "look")
    assert capfd.readouterr() == ("0\n1\n", "bad\nbad\n")


def test_every_program_has_a_remedy(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in tools.SOURCES:
        with pytest.raises(UserError, match=f"^{name} is not there; .*[A-Za-z)]\\.$"):
            tools.needed(name)
    monkeypatch.setenv("PATH", sys.prefix + "/bin")
    tools.needed()
