"""Where the cache lies."""

from vit_jax.io import cache


def test_as_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for value, root in {"/x/y": "/x/y", "~/mine": f"{tmp_path}/mine", "": f"{tmp_path}/.cache"}.items():
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert str(cache.folder()) == f"{root}/vit_jax"
        assert str(cache.folder("a", "b")) == f"{root}/vit_jax/a/b"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.folder("a") == tmp_path / ".cache" / "vit_jax" / "a" and not list(tmp_path.iterdir())
