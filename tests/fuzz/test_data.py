"""Data that people, programs and vandals made: images, tars, tables, trees of folders, and what is typed about them."""

from __future__ import annotations

import functools
import io
import json
import tarfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import strategies as st
from PIL import Image, features

from tests.fuzz import harness
from tests.fuzz.harness import FIFO, FOLDER, Case, Link, Sparse, damaged, json_texts, json_values

KINDS = ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000"] + ["AVIF"] * features.check("avif")


@functools.cache
def picture(kind: str, mode: str = "RGB") -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 11, 3), np.uint8)
    buffer = io.BytesIO()
    options = {"progressive": True} if mode == "CMYK" else {}
    Image.fromarray(pixels).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def pictures() -> st.SearchStrategy[bytes]:
    """Encoded images of several formats and modes, whole and damaged, and a few that are none."""
    good = st.sampled_from([picture(kind) for kind in KINDS])
    modes = st.sampled_from([picture("PNG", m) for m in ("1", "L", "LA", "P", "RGBA", "I;16")])
    more = st.sampled_from([picture("JPEG", "CMYK"), picture("TIFF", "F"), picture("TIFF", "CMYK")])
    none = st.one_of(
        st.binary(max_size=40), st.sampled_from([b"", b"\xff\xd8", b"GIF89a", b"RIFF\0\0\0\0WEBP", b"II*\0"])
    )
    return st.one_of(good, modes, more, damaged(good), damaged(modes), damaged(more), none)


SOUND = st.sampled_from([picture("PNG"), picture("JPEG")])
NAMES = st.one_of(
    st.sampled_from(
        ["a", "b", "0", "train", "val", "Test", "é", "e\u0301", ".x", "._y", "-", " ", "x" * 100, "\udce9", "a\nb"]
    ),
    st.text("ab.é猫 -_'\"\\\u2028\x0b%{}[]*?", min_size=1, max_size=6),
)
SPECIAL = st.sampled_from(
    [FIFO, FOLDER, Link("/dev/zero"), Link("nowhere"), Link(".."), Link("."), Sparse(2**33), Sparse(600)]
)


def check(kind: str, rest: str, files: dict[str, Any], *more: str) -> Case:
    return Case(("data", "check", f"{kind}:{rest}", *more), files)


@st.composite
def trees(draw: Callable[..., Any]) -> Case:
    """Folders of classes, of splits, of neither; links, pipes, endless files and odd names among them."""
    files: dict[str, Any] = {}
    if draw(st.booleans()):
        files |= {f"d/{name}/{i}.png": draw(SOUND) for name in "ab" for i in range(2)}
    for name in draw(st.lists(NAMES, min_size=1, max_size=4)):
        for below in draw(st.lists(NAMES, max_size=3)):
            end = draw(st.sampled_from([".jpg", ".PNG", ".gif", ".txt", "", "/x.jpg", "/deep/y.webp"]))
            content = draw(st.one_of(SOUND, SOUND, pictures(), SPECIAL))
            files[f"d/{name}/{below}{end}"] = content
    return check("folder", draw(st.sampled_from(["d"] * 6 + ["d/a", ".", "d/", "gone"])), files)


@st.composite
def images(draw: Callable[..., Any]) -> Case:
    files = {f"{label}/{i}.jpg": draw(pictures()) for label in "xy" for i in range(draw(st.integers(1, 3)))}
    limit = draw(st.sampled_from([(), (), ("--max_pixels", "50"), ("--max_pixels", "0"), ("--json", "-")]))
    return check("folder", ".", files, *limit)


@st.composite
def tars(draw: Callable[..., Any]) -> Case:
    """Shards with members of all kinds, labels and captions of all kinds, and damage to all of it."""
    buffer = io.BytesIO()
    form = draw(st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT]))
    with tarfile.open(fileobj=buffer, mode="w", format=form, encoding="utf-8", errors="surrogateescape") as archive:
        if sound := draw(st.booleans()):
            for name, content in SHARD.items():
                add(None, archive, name, content)
        for i in range(draw(st.integers(1 - sound, 3))):
            stem = draw(st.one_of(st.just(f"{i}"), st.just(f"c{i % 2}/{i}"), NAMES))
            for suffix in draw(st.lists(st.sampled_from(["jpg", "jpg", "cls", "json", "txt", "mask.png"]), max_size=4)):
                label = st.sampled_from(
                    [b"0", b"1", b"cat", b"9" * 5000, b"-1", b"\xff", b"", b"\xff\xfe0\0", b"\xef\xbb\xbf1"]
                )
                data = {
                    "cls": label,
                    "json": json_texts(st.one_of(json_values(), records())),
                    "txt": st.binary(max_size=9),
                }
                add(draw, archive, f"{stem}.{suffix}", draw(data.get(suffix, SOUND)))
    data = draw(st.one_of(st.just(buffer.getvalue()), damaged(st.just(buffer.getvalue()))))
    pattern = st.sampled_from(
        ["a.tar", "a.tar", "a.tar", ".", "{a,b}.tar", "*.tar", "a-{0..99999999}.tar", "{a,a}.tar"]
    )
    return check("tar", draw(pattern), {"a.tar": data})


SHARD = {"x/5.jpg": picture("PNG"), "x/5.cls": b"0", "x/6.jpg": picture("JPEG"), "x/6.cls": b"1", "x/6.txt": b"a\nb"}


def records() -> st.SearchStrategy[Any]:
    keys = st.sampled_from(["label", "cls", "class", "caption", "captions", "text", "image", "path", "width"])
    values = st.one_of(
        json_values(), st.sampled_from(["0", "1", "cat", "i.jpg", 0, 1, 1.0]), st.lists(st.text(max_size=5))
    )
    return st.dictionaries(keys, values, max_size=4)


def add(draw: Callable[..., Any] | None, archive: tarfile.TarFile, name: str, data: bytes) -> None:
    header = tarfile.TarInfo(name)
    header.size = len(data)
    if draw and draw(st.integers(0, 9)) == 0:
        kinds = [tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE]
        header.type, header.linkname, header.size = draw(st.sampled_from(kinds)), draw(NAMES), 0
        if archive.format == tarfile.PAX_FORMAT:
            junk = st.sampled_from(["", "x", "1,2,3", "-1", "9" * 400, "1e9"])
            keys = ["GNU.sparse.map", "GNU.sparse.size", "GNU.sparse.major", "size", "path", "mtime", "linkpath"]
            header.pax_headers = draw(st.dictionaries(st.sampled_from(keys), junk, max_size=3))
    try:
        archive.addfile(header, io.BytesIO(data[: header.size]))
    except (ValueError, UnicodeError):  # a name that this format cannot hold
        return


def columns(n: int) -> dict[str, st.SearchStrategy[Any]]:
    image = {"bytes": picture("PNG"), "path": "a.png"}
    odd = [None, {"bytes": None, "path": "/dev/zero"}, {"bytes": b"", "path": "i.jpg"}, {"bytes": b"x", "path": None}]
    structs = st.lists(st.sampled_from([image, image, image, *odd]), min_size=n, max_size=n).map(
        lambda rows: pa.array(rows, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    )
    plain = st.just(pa.array([picture("JPEG")] * n))
    paths = st.just(pa.array(["i.jpg"] * n))
    labels = [
        [i % 2 for i in range(n)], [float(i) for i in range(n)], [0.5] * n, ["b", "a"] * n, [None] * n, [-1] * n,
        [[0, 1]] * n, [{"a": 1}] * n, [True] * n, [b"\xff"] * n, [2**62] * n, [float("nan")] * n, [""] * n,
    ]  # fmt: skip
    label = st.sampled_from([pa.array(values[:n]) for values in labels])
    texts = [["a cat"] * n, [None] * n, [["a", "b"]] * n, [[]] * n, [""] * n, [[None]] * n, [5] * n, [[["a"]]] * n]
    text = st.sampled_from([pa.array(values) for values in texts])
    return {
        "image": st.one_of(structs, structs, plain, paths, label),
        "label": st.one_of(
            label, label.filter(lambda a: pa.types.is_integer(a.type)).map(lambda a: a.dictionary_encode())
        ),
        "caption": st.one_of(text, st.just(pa.array(["a"] * n).dictionary_encode())),
    }


@st.composite
def parquets(draw: Callable[..., Any]) -> Case:
    """Tables with columns of all types, metadata of all kinds, and damage to all of it."""
    n = draw(st.integers(0, 5))
    names = {
        "image": ["image", "img", "jpg", "Image", "x"],
        "label": ["label", "Labels", "y"],
        "caption": ["text", "z"],
    }
    table = {}
    if sound := draw(st.booleans()):
        n = 4
        table["image"] = pa.array([{"bytes": picture("PNG"), "path": "a.png"}] * n)
        table["label"] = draw(st.sampled_from([pa.array([0, 1, 1, 0]), pa.array(["y", "x", "x", "x"])]))
    for kind, strategy in columns(n).items():
        if sound and kind != "caption":
            continue
        if kind == "image" or draw(st.booleans()):
            table[draw(st.sampled_from(names[kind]))] = draw(strategy)
    made = pa.table(table)
    if draw(st.booleans()):
        feature = {"info": {"features": {"label": {"names": ["x", "y"]}}}}
        about = st.one_of(
            json_texts(), json_texts(st.just(feature)), json_texts(st.builds(lambda v: {"info": v}, json_values()))
        )
        made = made.replace_schema_metadata({"huggingface": draw(about)})
    buffer = io.BytesIO()
    pq.write_table(
        made, buffer, row_group_size=draw(st.integers(1, 4)), compression=draw(st.sampled_from(["snappy", "none"]))
    )
    data = draw(st.one_of(st.just(buffer.getvalue()), damaged(st.just(buffer.getvalue()))))
    end = st.sampled_from(["", "", "", "?label=y", "?image=x&label=label", "?label=", "?caption=z", "?no=1", "?"])
    place = draw(st.sampled_from(["a.parquet", "data/train-0.parquet", "train/0000.parquet"]))
    rest = draw(st.sampled_from([place, ".", "*.parquet"]))
    return check("parquet", rest + draw(end), {place: data, "i.jpg": picture("JPEG")})


CELLS = st.one_of(
    st.sampled_from(
        ["i.jpg", "i.jpg", "./i.jpg", "0", "1", "cat", "", '"', '""', '"a, b"', "/dev/zero", "pipe", "http://x/y.jpg"]
    ),
    st.text(max_size=8),
)
HEADS = st.sampled_from(
    ["path", "image", "Image_ID", "label", "LABEL", "caption", "title", "class", "", "x", '"text"', "\ufeffpath"]
)


@st.composite
def tables(draw: Callable[..., Any]) -> Case:
    separator = draw(st.sampled_from([",", ",", "\t", ";", "|", ":"]))
    width = draw(st.integers(1, 4))
    head = draw(st.one_of(st.just(["path", "label", "caption", "x"][:width]), st.lists(HEADS, min_size=1, max_size=4)))
    rows = draw(st.lists(st.lists(CELLS, min_size=len(head), max_size=len(head)), max_size=2))
    if draw(st.booleans()):
        head = ["path", "label", "caption", "x"]
        rows = [
            ["i.jpg", "0", "a", "b"],
            ["./i.jpg", "0", "", ""],
            ["pipe", "cat", "c", "d"],
            *([*r, "", "", ""][:4] for r in rows),
        ]
    end = draw(st.sampled_from(["\n", "\n", "\r\n", "\r"]))
    text = end.join(separator.join(row) for row in [head, *rows])
    data = text.encode(draw(st.sampled_from(["utf-8", "utf-8", "utf-16", "utf-8-sig", "utf-32"])), "surrogatepass")
    data = draw(st.one_of(st.just(data), damaged(st.just(data))))
    key = st.sampled_from(
        ["", "", "", "?separator=;", "?separator=tab", "?separator=", "?label=x", "?caption=&label=label"]
    )
    name = draw(st.sampled_from(["t.csv", "t.tsv", "train.csv"]))
    return check(
        "csv", draw(st.sampled_from([name, "."])) + draw(key), {name: data, "i.jpg": picture("JPEG"), "pipe": FIFO}
    )


@st.composite
def lines(draw: Callable[..., Any]) -> Case:
    good = st.sampled_from(
        [{"image": "i.jpg", "label": 0}, {"path": "i.jpg", "text": "a"}, {"image": "i.jpg", "captions": ["a", "b"]}]
    )
    odd = json_texts(st.one_of(good, good, good, records(), json_values()))
    line = st.one_of(*[good.map(lambda value: json.dumps(value).encode())] * 8, odd)
    data = draw(st.sampled_from([b"\n", b"\n", b"\r\n", b"\r"])).join(draw(st.lists(line, max_size=4)))
    data = draw(st.one_of(st.just(data), damaged(st.just(data)), json_texts(st.lists(records()))))
    key = st.sampled_from(["", "", "?label=class", "?image=path", "?separator=;"])
    return check("jsonl", "t.jsonl" + draw(key), {"t.jsonl": data, "i.jpg": picture("JPEG")})


SOURCES = [
    "folder:d",
    "folder:",
    "tar:a.tar",
    "fake:20x8x2",
    "fake:0",
    "fake:20x8x30",
    "fake:10x99999x2",
    "fake:9999999999",
    "mix:",
    "csv:t.csv",
    "mix:0.5*fake:20x8x2+0.5*folder:d",
    "mix:1*mix:1*fake:20",
    "mix:1e999*fake:20x8x2",
    "mix:nan*fake:20x8x2+1*fake:20x8x2",
    "digits:x",
    ":",
    "d",
    "/",
    "~",
    "tfds:nothing_of_that_name",
    "tfds:d",
    "tfds:d:train[:5]",
    "tar:{0..9}{0..9}{0..9}{0..9}{0..9}{0..9}.tar",
    "folder:d",
    "csv:t.csv",
]
SHARDS = [
    "x.tar",
    "x-{}.tar",
    "x-{:03d}.tar",
    "{a}",
    "{:z}",
    "{",
    "{}/x",
    "no/x.tar",
    "d",
    "x-{:99}.tar",
    "x-{0.__class__}.tar",
    "-",
    "--",
    "y.tar",
    "y-{}.tar",
]
OPTIONS = [
    "--json",
    "--shard_size",
    "--shard_size=0",
    "--shard_size=-1",
    "--shard_size=3",
    "--shard_size=x",
    "--vocab_size",
    "--vocab_size=300",
    "--vocab_size=-5",
    "--vocab_size=999999999999",
    "--lower",
    "--max_pixels",
    "--max_pixels=-1",
    "--verbose=1",
    "--config.x=1",
    "--json=",
    "--json=/",
    "--json=d/a/x.json",
    "--json=pipe",
    "--json=/dev/full",
    "--json=out.json",
    "--json=-",
    "--vocab_size=300",
    "--shard_size=2",
]
LONG_WORDS = [
    "",
    "fake:" + "9" * 30,
    "jsonl:" + "x" * 300,
    "folder:" + "x" * 5000,
    "tar:" + "{a,b}" * 40,
    "\udce9.json",
]
PLAIN = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6)
WORDS = st.one_of(*(st.sampled_from(words) for words in (SOURCES, SHARDS, OPTIONS, LONG_WORDS)), PLAIN)


@st.composite
def commands(draw: Callable[..., Any]) -> Case:
    """What may be typed after ``vit_jax data``, half of it nearly right."""
    files = {"d/a/0.jpg": picture("JPEG"), "d/b/0.png": picture("PNG"), "d/b/1.png": picture("GIF"), "pipe": FIFO}
    files |= {"t.csv": b"path,text\nd/a/0.jpg,a cat\nd/b/0.png,a dog\n", "x-1.tar": b"mine", "out.json": b"mine"}
    action = draw(st.sampled_from(["check", "pack", "pack", "tokenizer", "pck"]))
    words = draw(st.lists(WORDS, max_size=5))
    if draw(st.booleans()):
        second = {"pack": SHARDS, "tokenizer": ["out.json", "new.json", "d", "no/x.json"]}.get(action)
        words = [draw(st.sampled_from(SOURCES)), *([draw(st.sampled_from(second))] if second else [])]
        words += draw(st.lists(st.sampled_from(OPTIONS), max_size=2))
    return Case(("data", action, *words), files)


ALL = {
    "images": images(),
    "trees": trees(),
    "tars": tars(),
    "parquets": parquets(),
    "tables": tables(),
    "lines": lines(),
    "commands": commands(),
}


def test_a_few_of_all(server):
    harness.fuzz(server, st.one_of(*ALL.values()), 60)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ALL)
def test_many(server, kind):
    harness.fuzz(server, ALL[kind], harness.LONG)


def test_the_cases_are_what_they_seem(server):
    """Undamaged ones are accepted."""
    files = {f"{label}/{i}.jpg": picture(kind) for label in "xy" for i, kind in enumerate(KINDS)}
    assert server.run(check("folder", ".", files)).code == 0
    rows = json.dumps({"image": "i.jpg", "label": 0}) + "\n" + json.dumps({"image": "j.jpg", "label": 1})
    both = {"i.jpg": picture("JPEG"), "j.jpg": picture("GIF"), "t.jsonl": rows.encode()}
    assert server.run(check("jsonl", "t.jsonl", both)).out.startswith("2 examples of 2 classes")
