"""Linear maps, dense and structured: frozen specs that build layers, and the table of those with a name."""

from vit_jax.layers.linear.base import Dense as Dense
from vit_jax.layers.linear.base import DType as DType
from vit_jax.layers.linear.base import Init as Init
from vit_jax.layers.linear.base import Linear as Linear
from vit_jax.layers.linear.base import LinearLayer as LinearLayer
from vit_jax.layers.linear.base import LinearSpec as LinearSpec
from vit_jax.layers.linear.base import logical as logical
from vit_jax.layers.linear.base import matmul as matmul
from vit_jax.layers.linear.base import xavier_uniform_parts as xavier_uniform_parts
from vit_jax.layers.linear.specs import FIELDS as FIELDS
from vit_jax.layers.linear.specs import LINEARS as LINEARS
from vit_jax.layers.linear.specs import Spec as Spec
from vit_jax.layers.linear.specs import name_of as name_of
