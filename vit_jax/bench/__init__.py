"""Speed, measured as ratios within one run: models, losses, products of kernels, the input of data."""
