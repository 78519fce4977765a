from tests.train.conftest import alone, tiny  # noqa: F401
