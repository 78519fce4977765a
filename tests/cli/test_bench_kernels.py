"""The table of ``bench kernels``; that the command runs is tested in ``test_bench``."""

from vit_jax.cli.bench_kernels import table


def test_a_line_a_row():
    keys = ("median", "10th percentile", "90th percentile")
    row = {f"times dense ({k})": v for k, v in zip(keys, (2.0, 1.5, 2.5), strict=True)}
    row |= {"rows": 197, "implementation": "xla", "seconds": 0.001, "dense seconds": 0.002, "GFLOP/s": 150, "GB/s": 3.0}
    head, line = table([row]).splitlines()
    assert head.split()[:3] == ["rows", "runs", "as"]
    assert line.split() == ["197", "xla", "1.000", "150", "3.0", "2.000", "2.00", "(1.50", "to", "2.50)"]
