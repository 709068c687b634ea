"""Start values of the tiny MetricX's encoder: what a judge of translations needs is there, weakly, before training.

Left to itself a model of this size and data learns a count of matching words, which rewards repetition. So the width is
divided, and four heads start with a job:

    coordinates   0            1-3              4-6               7-9             10-33             34-
    content       constant 1   field markers    field (written)   alone (written) identity code     translation (LSA)

    block 0, head 0   finds the nearest field name on the left: writes whether a piece is source, candidate or reference
    block 1, head 1   finds an earlier copy of a piece in its field, else a field name: writes "no copy of me before"
    block 1, heads 2+ find pieces of *other* fields with a similar translation vector, else a field name: write "alone"

Everything is free to move in training, and nothing here is needed to load or run a checkpoint.
"""

import math

import numpy as np
import torch
from torch import Tensor
from transformers.models.mt5.modeling_mt5 import MT5Attention

from reward_workers.metricx.model import MetricXRegression

CONSTANT, MARKER, FIELD, ALONE = 0, slice(1, 4), slice(4, 7), slice(7, 10)
CODE, TRANSLATION = slice(10, 34), slice(34, None)
NEVER = -10.0  # a position bias that rules a place out


def set_embeddings(table: Tensor, translation: np.ndarray, markers: list[int], seed: int) -> None:
    """Fill the rows of known pieces; `translation` is [pieces, width - 34], `markers` the ids of the field names."""
    known = table[: len(translation)]
    generator = torch.Generator().manual_seed(seed)
    known.zero_()
    known[:, CODE] = torch.randn(len(known), CODE.stop - CODE.start, generator=generator)
    known[:, TRANSLATION] = torch.from_numpy(translation)
    known[markers, TRANSLATION] = 0
    known[:, CONSTANT] = 1
    for i, piece in enumerate(markers):
        known[piece, MARKER.start + i] = 4
    known[0] *= 0.1  # the decoder starts from this constant; at unit size it drowns what is read from the encoder


def set_heads(model: MetricXRegression) -> None:
    """Give the heads of the first two blocks their jobs, and let the rest speak low at first."""
    for block in model.encoder.block:
        block.layer[0].SelfAttention.o.weight *= 0.3
        block.layer[1].DenseReluDense.wo.weight *= 0.3
    first, second = (model.encoder.block[i].layer[0].SelfAttention for i in range(2))
    bias = first.relative_attention_bias.weight  # [32 buckets, heads], shared by all blocks; 0: itself, 1-15: left
    bias.zero_()
    bias[1:16, 0] = -0.8 * torch.arange(1, 16)
    bias[16:, 0] = NEVER
    bias[0, 1:] = NEVER
    bias[16:, 1] = NEVER
    field = Head(first, 0)
    field.look_for_markers(14.0)
    field.write(MARKER, FIELD, 0.5)
    copies = Head(second, 1)
    copies.match(CODE, 12.0)
    copies.match_field(5.0)
    copies.look_for_markers(6.0)
    copies.write(MARKER, slice(ALONE.start, ALONE.start + 1), 0.5)
    for h in range(2, second.n_heads):
        similar = Head(second, h)
        similar.match(TRANSLATION, 7.0)
        similar.match_field(-4.0)
        similar.look_for_markers(4.0)
        column = ALONE.start + 1 + h % 2
        similar.write(MARKER, slice(column, column + 1), 0.5)


class Head:
    """One attention head whose rows are filled one after the other."""

    def __init__(self, attention: MT5Attention, index: int):
        size = attention.key_value_proj_dim
        rows = slice(index * size, (index + 1) * size)
        self.q, self.k, self.v = attention.q.weight[rows], attention.k.weight[rows], attention.v.weight[rows]
        self.o = attention.o.weight[:, rows]
        self.q.zero_()
        self.k.zero_()
        self.used = 0

    def look_for_markers(self, logit: float) -> None:
        """Every piece gives this logit to the field names (whose marker coordinate is 4)."""
        self.q[self.used, CONSTANT] = self.k[self.used, MARKER] = math.sqrt(logit / 4)
        self.used += 1

    def match(self, part: slice, logit: float) -> None:
        """Pieces whose coordinates of `part` are equal give each other this logit; unrelated ones about 0."""
        width = len(range(*part.indices(self.q.shape[1])))
        rows = min(width, len(self.q) - 4)
        directions = torch.linalg.qr(torch.randn(width, rows))[0].T * math.sqrt(logit / rows)
        self.q[self.used : self.used + rows, part] = self.k[self.used : self.used + rows, part] = directions
        self.used += rows

    def match_field(self, logit: float) -> None:
        """Pieces of one field give each other this logit (below 0: avoid each other); the coordinate is about 2."""
        scale = math.sqrt(abs(logit) / 4)
        for column in range(FIELD.start, FIELD.stop):
            self.q[self.used, column], self.k[self.used, column] = scale, math.copysign(scale, logit)
            self.used += 1

    def write(self, read: slice, to: slice, scale: float) -> None:
        """Add what is attended to at `read` onto `to`, summed where `to` is narrower."""
        targets = list(range(to.start, to.stop))
        for row, column in enumerate(range(read.start, read.stop)):
            self.v[row].zero_()
            self.v[row, column] = 1
            self.o[:, row].zero_()
            self.o[targets[row % len(targets)], row] = scale
