"""Llama (2, 3.x, SmolLM2) and Qwen3: one block, with norms on queries and keys in Qwen3.

Reports: arXiv 2302.13971, 2407.21783, 2505.09388; the numbers agree with transformers' `LlamaForCausalLM` and
`Qwen3ForCausalLM`.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
from jax.nn import initializers
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jax_rl.models import blocks
from jax_rl.models.attend import Attend
from jax_rl.models.blocks import HIDDEN, LayerSpecs, Place, gated_mlp, keep, project_heads
from jax_rl.models.cache import KV, Cache, empty_cache, empty_kv
from jax_rl.models.errors import ModelError
from jax_rl.models.layers import Rope, apply_rope, linear, plain_rms_norm, rope_angles
from jax_rl.models.params import Params, Specs
from jax_rl.models.stack import Remat, run_stack, stack_caches, stack_specs

FULL = "full_attention"

# what transformers' LlamaConfig and Qwen3Config assume
_LLAMA_DEFAULTS: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "rms_norm_eps": 1e-6,
    "initializer_range": 0.02,
    "tie_word_embeddings": False,
}
_QWEN3_DEFAULTS = _LLAMA_DEFAULTS | {
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "head_dim": 128,
}
# what the forward pass takes for granted
_REQUIRED: dict[str, Any] = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "use_sliding_window": False,
}


@dataclass(frozen=True)
class LlamaConfig:
    """Hashable; field names are Hugging Face's."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    initializer_range: float
    tie_word_embeddings: bool
    head_norms: bool  # Qwen3: queries and keys are normalised in each head
    rope: Rope

    @classmethod
    def from_hf(cls, raw: dict[str, Any]) -> "LlamaConfig":
        """Reads a config.json of transformers 4 or 5, `model_type` llama or qwen3.

        Raises:
            ModelError: all the fields whose values are not implemented, in one message.
        """
        is_qwen3 = raw["model_type"] == "qwen3"
        wrong = blocks.wrong_fields(raw, _REQUIRED)
        wrong += [f"layer_types has {kind!r}" for kind in sorted(set(raw.get("layer_types") or [FULL]) - {FULL})]
        if wrong:
            raise ModelError(f"this {raw['model_type']} config.json is not supported: " + "; ".join(wrong))
        fields = blocks.read_fields(raw, _QWEN3_DEFAULTS if is_qwen3 else _LLAMA_DEFAULTS)
        heads = fields["num_attention_heads"]
        fields.setdefault("num_key_value_heads", raw.get("num_key_value_heads") or heads)
        fields.setdefault("head_dim", raw.get("head_dim") or fields["hidden_size"] // heads)
        scaling = {**(raw.get("rope_scaling") or {}), **(raw.get("rope_parameters") or {})}
        rope = Rope.from_hf({"rope_theta": raw.get("rope_theta", 10_000.0), **scaling}, where=raw["model_type"])
        return cls(**fields, head_norms=is_qwen3, rope=rope)


def _kinds(cfg: LlamaConfig) -> tuple[str, ...]:
    return (FULL,) * cfg.num_hidden_layers


def param_specs(cfg: LlamaConfig) -> Specs:
    """{"embed", "norm", ["lm_head"], "blocks": {"0": layer}}."""
    return blocks.table_specs(cfg, initializers.ones) | stack_specs(_kinds(cfg), partial(_layer_specs, cfg))


def _layer_specs(cfg: LlamaConfig, kind: str, number: int) -> dict[str, Any]:
    layer = LayerSpecs(cfg, number, initializers.ones)
    return {
        "input_layernorm": layer.hidden_norm("input_layernorm"),
        "self_attn": layer.attention(head_norms=cfg.head_norms),
        "post_attention_layernorm": layer.hidden_norm("post_attention_layernorm"),
        "mlp": layer.mlp(),
    }


def init_cache(cfg: LlamaConfig, batch: int, slots: int, dtype: DTypeLike) -> Cache:
    """An empty cache."""

    def layer_cache(kind: str) -> KV:
        return empty_kv(batch, cfg.num_key_value_heads, slots, cfg.head_dim, dtype)

    return empty_cache(stack_caches(_kinds(cfg), layer_cache), batch, slots)


def forward(
    cfg: LlamaConfig,
    params: Params,
    tokens: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    *,
    cache: Cache | None = None,
    segments: Int[Array, "B T"] | None = None,
    remat: Remat | None = None,
    place: Place = keep,
) -> tuple[Float[Array, "B T D"], Cache | None]:
    """Hidden states after the final norm: see `registry.Model.forward`."""
    x = blocks.embed_tokens(params, tokens, place)
    attend, cache = Attend.begin(positions, segments, cache)
    angles, mask = rope_angles(cfg.rope, positions, cfg.head_dim), attend.mask()

    @jax.named_scope("attention")
    def self_attention(p: Params, h: Array, kv: KV | None, row: Array | None) -> tuple[Array, KV | None]:
        q, k, v = (project_heads(p, name, h, cfg.head_dim, place) for name in ("q_proj", "k_proj", "v_proj"))
        if cfg.head_norms:
            q, k = (plain_rms_norm(x, p[n], cfg.rms_norm_eps) for x, n in ((q, "q_norm"), (k, "k_norm")))
        q, k = apply_rope(q, angles), apply_rope(k, angles)
        out, kv = attend(q, k, v, mask, cfg.head_dim**-0.5, kv, row)
        return linear(out, p["o_proj"]), kv

    def layer(kind: str, p: Params, x: Array, kv: KV | None, row: Array | None) -> tuple[Array, KV | None]:
        h, kv = self_attention(p["self_attn"], plain_rms_norm(x, p["input_layernorm"], cfg.rms_norm_eps), kv, row)
        x = x + h
        h = plain_rms_norm(x, p["post_attention_layernorm"], cfg.rms_norm_eps)
        return place(x + gated_mlp(p["mlp"], h, jax.nn.silu, place), HIDDEN), kv

    x, cache = run_stack(_kinds(cfg), layer, params, x, cache, remat)
    return plain_rms_norm(x, params["norm"], cfg.rms_norm_eps), cache
