"""What a run takes on devices that are not here: ``vit_jax plan``.

A step is compiled by the devices' own compiler, which needs none of them, and the program is read: how much memory it
takes, what it computes, what devices tell each other, how many cycles the compiler expects.
"""

from vit_jax.plan.planning import plan as plan
from vit_jax.plan.report import Plan as Plan
