"""Where environments come from: gymnax, brax, rlzoo's own, and packages that are extras."""

from rlzoo import env  # noqa: F401  (first, since gymnax starts jax)
