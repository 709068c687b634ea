"""A token table whose gradient is added to a running total in place.

A table of 262,144 tokens is a good part of a small model, and its gradient arrives in two parts, from the lookup and
from the head: kept apart until they are added they would take two more tables of memory.
"""

from dataclasses import dataclass, replace
from typing import Any

import jax

from jax_rl.models.params import ParamSpec, read_held


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Table:
    """Stands in a tree of parameters for the table [V, D] while a gradient is taken."""

    weight: Any  # [V, D], the table; no gradient flows to it
    rows: Any = None  # [B, T, D], its rows of the tokens that are read; None: only the head uses it
    total: Any = None  # [V, D] f32: the head's gradient with respect to it is `total` plus the weight's gradient

    def read(self, spec: ParamSpec) -> "Table":
        """Without the zeros that a mesh may hold parameters with."""
        rows = None if self.rows is None else self.rows[..., : spec.shape[-1]]
        total = None if self.total is None else read_held(spec, self.total)
        return replace(self, weight=read_held(spec, self.weight), rows=rows, total=total)
