"""What a person sees: a bar on a terminal, a line now and then elsewhere."""

import errno
import io
import os
import sys

import pytest

from vit_jax.train import progress
from vit_jax.train.progress import Progress, noted, say, table


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_without_a_terminal_lines_come_at_most_every_ten_seconds(monkeypatch, capsys):
    now = [1000.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    bar = Progress(10, 50, 2.5)
    now[0] += 500.0  # the step is compiled
    for step in range(11, 51):
        now[0] += 1.0
        bar.step()
        bar.show(step, {"loss": 1.23456, "accuracy": 0.5})
    bar.close()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "step 11/50 (epoch 4.4/20): loss 1.235"
    assert lines[1] == "step 21/50 (epoch 8.4/20): loss 1.235, 29 s left"
    assert [line.split()[1] for line in lines] == ["11/50", "21/50", "31/50", "41/50", "50/50"]
    assert sys.stderr.getvalue() == ""


def test_on_a_terminal_there_is_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", Terminal())
    bar = Progress(0, 4, 2)
    bar.show(1, {"loss": 0.5, "speed/waiting": 0.25, "speed/mfu": 0.5})
    for _ in range(4):
        bar.step()
    bar.close()
    assert "epoch 0.5, loss 0.5, MFU 50%, input wait 25%" in sys.stderr.getvalue() and "4/4" in sys.stderr.getvalue()
    assert capsys.readouterr().out == ""


def test_epochs_are_named_as_they_are():
    bar = Progress(0, 3592, 1437 / 32)
    assert bar.at(900) == "step 900/3592 (epoch 20.0/80)" and bar.at(3592) == "step 3592/3592 (epoch 80.0/80)"
    assert Progress(0, 100, 1000).at(50) == "step 50/100 (epoch 0.05/0.1)"
    bar.close()


def test_only_the_first_host_speaks(monkeypatch, capsys):
    say("here")
    monkeypatch.setattr(progress.jax, "process_index", lambda: 1)
    say("there")
    assert capsys.readouterr().out == "here\n"


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ({"a": 1234567, "long": 0.123456789, "x": "text"}, "  a     1,234,567\n  long  0.123457\n  x     text"),
        ({"mesh": {"fsdp": 2}}, "  mesh  {'fsdp': 2}"),
    ],
)
def test_table(rows, text):
    assert table(rows) == text


def test_notes_are_a_line_each():
    assert noted("starts from x", []) == "starts from x: every parameter taken as it is"
    assert noted("starts from x", ["a is new", "b; c"]) == "starts from x\n  a is new\n  b; c"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EPIPE])
def test_what_nobody_can_hear_ends_nothing(monkeypatch, number):
    class Deaf(io.StringIO):
        def write(self, _):
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(sys, "stdout", Deaf())
    progress.say("step 1")
