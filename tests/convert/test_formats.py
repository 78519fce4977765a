"""The table of formats."""

from vit_jax.convert.formats import FILES, FORMATS, TARGETS


def test_their_names_and_files():
    assert list(FORMATS) == ["timm", "open_clip", "hf", "npz", "big_vision", "authors"]
    assert all(fmt.name == name and fmt.suffix in FILES and fmt.codecs for name, fmt in FORMATS.items())
    written = {name: fmt for name, fmt in FORMATS.items() if any(codec.kinds for codec in fmt.codecs)}
    assert {**written, "vit_jax": None} == TARGETS and len(written) == 5
