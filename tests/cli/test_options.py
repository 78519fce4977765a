"""Arguments that several commands have."""

import argparse

import pytest

from vit_jax.cli import options


def test_weights_are_of_a_run_or_a_checkpoint_and_a_value_has_the_type_of_its_default(capsys):
    parser = argparse.ArgumentParser()
    options.weights(parser)
    options.value(parser, "top", 5, "classes to name", metavar="K")
    options.json(parser, "predictions")
    args = parser.parse_args(["--checkpoint", "x", "--top", "3", "--json", "-"])
    assert (args.workdir, args.checkpoint, args.top, args.json) == (None, "x", 3, "-")
    for wrong in ([], ["--workdir", "a", "--checkpoint", "b"], ["--workdir", "a", "--top", "x"]):
        with pytest.raises(SystemExit):
            parser.parse_args(wrong)
    capsys.readouterr()
    text = " ".join(parser.format_help().split())
    assert "--top K classes to name (default 5)" in text and "write the predictions there" in text
