"""Products with structured and sparse matrices, each in several implementations that agree in value and gradient."""
