"""Files of papers' own code, of models that no library has; they are read alone."""

from vit_jax.convert.authors import hornet, vim
from vit_jax.convert.format import Format

FORMAT = Format("authors", "their authors' code", ".pth", "bilinear_corners", (hornet.CODEC, vim.CODEC))
