"""Models made smaller, and brought back: the structure of their linear maps."""
