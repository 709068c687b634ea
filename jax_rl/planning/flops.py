"""Floating-point operations by formula: two for each weight that a token meets, and attention's products.

A compiler's own count sees the body of a loop over layers or tokens once. What is counted is what the result needs:
pairs of tokens that see each other (PaLM, arXiv 2204.02311, appendix B, counts all pairs), and no padding within them.
"""

import numpy as np

from jax_rl.models.params import Specs, spec_leaves
from jax_rl.models.registry import QWEN3_5, Model

FORWARD, TRAIN, TRAIN_FROZEN = 1, 4, 3  # a training pass: forward, forward again (remat), two backward; frozen: one


def matrix_weights(specs: Specs) -> int:
    """Weights of the layers' matrices: the N of 2 N T. The embedding is looked up, the head counted by its tokens."""
    tables = ("embed_tokens.weight", "lm_head.weight")
    return sum(s.size for s in spec_leaves(specs) if len(s.tensor_shape) == 2 and s.hf_names[0] not in tables)


def forward_flops(model: Model, rows: int, tokens: int, scored: int, before: int = 0) -> int:
    """One forward pass over `rows` rows.

    tokens: of each row, of which `scored` are compared with the vocabulary. before: those that they see before them,
    in the cache or in a row that completions share.
    """
    head = 2 * model.cfg.vocab_size * model.cfg.hidden_size * scored
    return rows * (2 * matrix_weights(model.specs) * tokens + mixing_flops(model, tokens, before) + head)


def train_flops(model: Model, rows: int, tokens: int, scored: int, adapters: Specs | None, before: int = 0) -> int:
    """Loss and gradient of `rows` rows with rematerialization: 8 N T; where the weights are frozen 6 N T, and the
    adapters' 8 N T.
    """
    once = forward_flops(model, rows, tokens, scored, before)
    if adapters is None:
        return TRAIN * once
    mixing = rows * mixing_flops(model, tokens, before)
    return TRAIN_FROZEN * (once - mixing) + TRAIN * (mixing + 2 * rows * tokens * matrix_weights(adapters))


def mixing_flops(model: Model, tokens: int, before: int = 0) -> int:
    """What mixes the tokens of one row: attention over the keys that each sees; DeltaNet's state, read, written and
    read again for each token.
    """
    cfg = model.cfg
    if model.family is QWEN3_5:
        state = cfg.linear_num_value_heads * cfg.linear_key_head_dim * cfg.linear_value_head_dim
        delta = cfg.layer_types.count("linear_attention")
        return (cfg.num_hidden_layers - delta) * _attention(cfg, tokens, before, None) + delta * 6 * state * tokens
    kinds = cfg.layer_types if model.family.name == "gemma3" else ("full_attention",) * cfg.num_hidden_layers
    windows = {"sliding_attention": cfg.sliding_window if "sliding_attention" in kinds else None}
    return sum(_attention(cfg, tokens, before, windows.get(kind)) for kind in kinds)


def _attention(cfg, tokens: int, before: int, window: int | None) -> int:
    seen = np.arange(before + 1, before + tokens + 1)
    pairs = int(np.minimum(seen, window).sum() if window else seen.sum())
    return 4 * cfg.num_attention_heads * cfg.head_dim * pairs  # queries with keys, weights with values
