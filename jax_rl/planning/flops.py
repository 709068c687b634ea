"""Floating-point operations by formula: two for each weight that a token meets, and attention's products.

A compiler's own count sees the body of a loop over layers or tokens once. What is counted is what the result needs:
pairs of tokens that see each other (PaLM, arXiv 2204.02311, appendix B, counts all pairs), and no padding within them.
"""

import numpy as np

from jax_rl.models.params import Specs, spec_leaves
from jax_rl.models.registry import QWEN3_5, Model
from jax_rl.models.stack import Remat

BACKWARD, BACKWARD_FROZEN = 2, 1  # passes: to the inputs and to the weights; to the inputs alone
AGAIN = {"full": 1, "minimal": 0}  # forward passes of the weights' products that `rl.remat` makes again


def matrix_weights(specs: Specs) -> int:
    """Weights of the layers' matrices: the N of 2 N T. The embedding is looked up, the head counted by its tokens."""
    tables = ("embed_tokens.weight", "lm_head.weight")
    return sum(s.size for s in spec_leaves(specs) if len(s.tensor_shape) == 2 and s.hf_names[0] not in tables)


def forward_flops(model: Model, rows: int, tokens: int, scored: int, before: int = 0) -> int:
    """One forward pass over `rows` rows.

    tokens: of each row, of which `scored` are compared with the vocabulary. before: those that they see before them,
    in the cache or in a row that completions share.
    """
    return rows * sum(_forward_parts(model, tokens, scored, before))


def _forward_parts(model: Model, tokens: int, scored: int, before: int) -> tuple[int, int, int]:
    """Of one row: the products with the layers' weights, what mixes tokens, and the head."""
    head = 2 * model.cfg.vocab_size * model.cfg.hidden_size * scored
    return 2 * matrix_weights(model.specs) * tokens, mixing_flops(model, tokens, before), head


def train_flops(
    model: Model, rows: int, tokens: int, scored: int, adapters: Specs | None, before: int = 0, remat: Remat = "full"
) -> int:
    """Loss and gradient of `rows` rows with full rematerialization: 8 N T; where the weights are frozen 6 N T, and the
    adapters' 8 N T. With a minimal one 2 N T less, but what mixes tokens and the head are computed twice in any case.
    """
    products, mixing, head = (rows * part for part in _forward_parts(model, tokens, scored, before))
    twice, forward = 2, 1 + AGAIN[remat]
    if adapters is None:
        return (forward + BACKWARD) * products + (twice + BACKWARD) * (mixing + head)
    of_adapters = 2 * rows * tokens * matrix_weights(adapters)
    of_frozen = (forward + BACKWARD_FROZEN) * products + (twice + BACKWARD_FROZEN) * head
    return of_frozen + (forward + BACKWARD) * of_adapters + (twice + BACKWARD) * mixing


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
