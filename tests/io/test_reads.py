"""Which file a thread reads."""

import pathlib
import threading

from vit_jax.io import reads


def test_the_innermost_file_is_named_while_it_is_read():
    me, other = threading.get_ident(), []
    assert reads.by(me) == ""
    with reads.reading("a.tar"):
        with reads.reading(pathlib.Path("b.jpg")):
            assert reads.by(me) == "b.jpg"
            thread = threading.Thread(target=lambda: other.append(reads.by(threading.get_ident())))
            thread.start()
            thread.join()
        assert reads.by(me) == "a.tar"
    assert reads.by(me) == "" and other == [""]
