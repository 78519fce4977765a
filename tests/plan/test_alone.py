"""The program that has kernels compiled; what it does with a real compiler is in ``test_schedule.py``."""

import pytest

from vit_jax.plan import alone


def test_the_schedule_is_found_among_what_libtpu_writes(tmp_path):
    start = lambda what: f"   0   :  {{ %9 = vsyncpa [#allocation3], 0 }} /* entry bundle: %{what} */\n"  # noqa: E731
    call = start("f.1 = custom-call(%x, %y)")
    others = {"1-TLP-01": "jit_f", "1-<late-initialization>-01": "jit_f", "2-copy.1-01": "copy.1 = copy(%x)"}
    files = {f"{name}-final_bundles.txt": start(what) for name, what in others.items()}
    files["2-f.1-00-schedule-analysis_final_bundles.txt"] = call
    for wanted in ({}, {"2-f.1-01-final_bundles.txt": call}):
        for name, content in (files | wanted).items():
            (tmp_path / name).write_text(content)
        if wanted:
            assert alone.written(tmp_path) == call
        else:
            with pytest.raises(ValueError, match="wrote 0 schedules"):
                alone.written(tmp_path)
        assert not list(tmp_path.iterdir())
