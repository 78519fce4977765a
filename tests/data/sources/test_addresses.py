"""Data at an address is the data of the files: the same examples in the same order, by ranges of what holds them."""

import os
import uuid

import numpy as np
import pytest

from tests import stores
from tests.data.helpers import encode
from vit_jax.data.loader import train_batches
from vit_jax.data.sources import open_source, write_tar
from vit_jax.io import retry, store
from vit_jax.types import UserError


@pytest.fixture
def kinds(folder, tmp_path):
    """Kind -> where the images of ``folder`` are, packed so, below ``tmp_path``."""
    images = open_source(f"folder:{folder}", holdout=0)
    write_tar(images, f"{tmp_path}/t-{{:03d}}.tar", shard_size=20)
    rows = [images[i] for i in range(len(images))]
    paths = [os.path.relpath(row["name"], tmp_path) for row in rows]
    lines = (f"{path},{row['label']},a {row['label']}" for path, row in zip(paths, rows, strict=True))
    (tmp_path / "t.csv").write_text("\n".join(["path,label,caption", *lines]))
    (tmp_path / "t.jsonl").write_text(
        "\n".join(f'{{"path": "{path}", "label": {row["label"]}}}' for path, row in zip(paths, rows, strict=True))
    )
    write_parquet(tmp_path / "t.parquet", rows, 4)
    return {
        "folder": "images", "tar": "t-{000..001}.tar", "csv": "t.csv", "jsonl": "t.jsonl", "parquet": "t.parquet"
    }  # fmt: skip


def write_parquet(path, rows, size):
    import pyarrow
    import pyarrow.parquet

    table = {"image": [{"bytes": row["image"], "path": None} for row in rows], "label": [row["label"] for row in rows]}
    pyarrow.parquet.write_table(pyarrow.table(table), path, row_group_size=size)


def put(tmp_path, address):
    for path in tmp_path.rglob("*.*"):
        if path.is_file() and "cache" not in path.parts:
            store.upload(path, f"{address}/{path.relative_to(tmp_path)}")


def same(one, other):
    """Whether two sources, for training and for validation, are one."""
    for split in ("train", "val"):
        a, b = (open_source(path, split, holdout=0.3, seed=4) for path in (one, other))
        assert a.info.digest == b.info.digest and a.info.class_names == b.info.class_names and len(a) == len(b)
        batches = [train_batches(s, batch_size=5, seed=1, steps=3, canvas=8) for s in (a, b)]
        for here, there in zip(*batches, strict=True):
            assert all(np.array_equal(here[k], there[k]) for k in here)


def test_batches_are_those_of_local_files(kinds, tmp_path):
    address = f"memory://{uuid.uuid4().hex}/data"
    put(tmp_path, address)
    for kind, name in kinds.items():
        same(f"{kind}:{tmp_path}/{name}", f"{kind}:{address}/{name}")
    same(f"tar:{tmp_path}/t-*.tar", f"tar:{address}/t-*.tar")
    same(f"tar:{tmp_path}", f"tar:{address}/")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("folder:memory://{}/nothing", "does not exist, or is no folder"),
        ("tar:memory://{}/{{0..1}}.tar", r"0\.tar cannot be read \(it does not exist\)"),
        ("tar:memory://{}/*.tar", "does not exist, or is no file"),
        ("parquet:memory://{}/x.parquet", r"cannot be read \(it does not exist\)"),
        ("csv:memory://{}/x.csv", r"cannot be read \(it does not exist\)"),
        ("memory://{}/data", "write for example 'folder:memory://"),
        ("folder:s3://me:secret@{}/data", "may give access"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_a_sentence(path, words):
    with pytest.raises(UserError, match=words) as e:
        open_source(path.format(uuid.uuid4().hex))
    assert "secret" not in str(e.value)


@pytest.mark.slow
def test_ranges_are_read_and_errors_of_the_store_pass(tmp_path, rng, monkeypatch):
    """moto's S3 behind a proxy at which every fifth request fails; bytes are those that it sent."""
    monkeypatch.setattr(retry, "_counts", type(retry._counts)())
    for name in "ab":
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(24):
            noise = rng.integers(0, 256, (150, 150, 3), np.uint8)
            (tmp_path / "images" / name / f"{i:02d}.png").write_bytes(encode(noise, "PNG"))
    images = open_source(f"folder:{tmp_path}/images", holdout=0)
    rows = [images[i] for i in range(len(images))]
    write_tar(images, f"{tmp_path}/t-{{:03d}}.tar", shard_size=24)
    write_parquet(tmp_path / "t.parquet", rows, 4)
    with stores.s3("bucket") as (proxy, variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        put(tmp_path, "s3://bucket/data")
        proxy.fail = 5
        whole = sum(len(row["image"]) for row in rows)
        for kind, name, most in (("tar", "t-*.tar", 0.3), ("parquet", "t.parquet", 0.1)):
            proxy.forget()
            source = open_source(f"{kind}:s3://bucket/data/{name}", holdout=0)
            opened = sum(proxy.sent.values())
            assert opened < most * whole, (kind, opened, whole)
            assert source[30]["image"] == rows[30]["image"]
            one = sum(proxy.sent.values()) - opened
            assert one < (1 if kind == "tar" else 5) * len(rows[30]["image"]) + 2**17, (kind, one)
        same(f"folder:{tmp_path}/images", "folder:s3://bucket/data/images")
        same(f"tar:{tmp_path}/t-*.tar", "tar:s3://bucket/data/t-{000..001}.tar")
        same(f"parquet:{tmp_path}/t.parquet", "parquet:s3://bucket/data/t.parquet")
        assert proxy.failed > 20 and retry.counts()["s3://bucket"] > 10
        proxy.fail = 1
        monkeypatch.setattr(retry, "WAITS", (0.0, 0.0))
        with pytest.raises(UserError, match=r"the data at s3://bucket/data/images cannot be read \(.*try again\)\."):
            open_source("folder:s3://bucket/data/images")
