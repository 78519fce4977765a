"""The table of formats."""

from vit_jax.convert.formats import FILES, FORMATS, TARGETS


def test_their_names_and_files():
    assert list(FORMATS) == ["timm", "open_clip", "hf", "npz", "big_vision"]
    assert all(fmt.name == name and fmt.suffix in FILES and fmt.codecs for name, fmt in FORMATS.items())
    assert TARGETS == {**FORMATS, "vit_jax": None}
