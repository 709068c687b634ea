"""Gemma 3's text decoder (270m, 1b, 4b, 12b, 27b, TranslateGemma): config, parameters, forward pass, cache.

Report: arXiv 2503.19786; the numbers agree with transformers' `Gemma3ForCausalLM`. Images are not read: of a multimodal
checkpoint the text model is loaded, and export copies the rest. Its embedding rows 262144..262207 belong to no text
token; they are ordinary rows here, as in transformers: sampling and logprobs both include them.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn import initializers
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jax_rl.models import blocks
from jax_rl.models.attend import Attend
from jax_rl.models.blocks import HIDDEN, LayerSpecs, Place, gated_mlp, keep, project_heads
from jax_rl.models.cache import KV, Cache, empty_cache, empty_kv
from jax_rl.models.errors import ModelError
from jax_rl.models.layers import Rope, apply_rope, linear, rms_norm, rope_angles
from jax_rl.models.params import Params, Specs
from jax_rl.models.stack import Remat, run_stack, stack_caches, stack_specs

SLIDING, FULL = "sliding_attention", "full_attention"

# the vision tower and its projector, as written by different versions of transformers
OTHER_TENSORS = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")

# what transformers' Gemma3TextConfig assumes; the published config.json files leave out what equals it
_DEFAULTS: dict[str, Any] = {
    "vocab_size": 262208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "rms_norm_eps": 1e-6,
    "initializer_range": 0.02,
}
# what the forward pass takes for granted
_REQUIRED: dict[str, Any] = {
    "hidden_activation": "gelu_pytorch_tanh",
    "attention_bias": False,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "use_bidirectional_attention": False,
}


@dataclass(frozen=True)
class Gemma3Config:
    """Hashable, so that jitted functions can close over it; field names are Hugging Face's."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    query_pre_attn_scalar: int | float
    sliding_window: int
    rms_norm_eps: float
    initializer_range: float
    layer_types: tuple[str, ...]
    rope_sliding: Rope
    rope_full: Rope
    tie_word_embeddings: bool

    @classmethod
    def from_hf(cls, raw: dict[str, Any]) -> "Gemma3Config":
        """Reads a config.json of transformers 4 or 5, of the text model or of the multimodal wrapper.

        Raises:
            ModelError: all the fields whose values are not implemented, in one message.
        """
        text = blocks.text_config(raw)
        fields = blocks.read_fields(text, _DEFAULTS)
        pattern = text.get("sliding_window_pattern") or 6
        kinds = text.get("layer_types") or [
            FULL if (i + 1) % pattern == 0 else SLIDING for i in range(fields["num_hidden_layers"])
        ]
        wrong = blocks.wrong_fields(text, _REQUIRED)
        wrong += [f"layer_types has an unknown kind {kind!r}" for kind in sorted(set(kinds) - {SLIDING, FULL})]
        if len(kinds) != fields["num_hidden_layers"]:
            wrong.append(f"layer_types has {len(kinds)} entries, num_hidden_layers is {fields['num_hidden_layers']}")
        if wrong:
            raise ModelError("this Gemma 3 config.json is not supported: " + "; ".join(wrong))
        return cls(
            **fields,
            layer_types=tuple(kinds),
            rope_sliding=_read_rope(text, SLIDING),
            rope_full=_read_rope(text, FULL),
            tie_word_embeddings=raw.get("tie_word_embeddings", text.get("tie_word_embeddings", True)) is not False,
        )


def _read_rope(text: dict[str, Any], kind: str) -> Rope:
    """Rotary parameters of one kind of layer. transformers 4 scales the full layers alone."""
    theta_name, theta = ("rope_theta", 1_000_000.0) if kind == FULL else ("rope_local_base_freq", 10_000.0)
    new = (text.get("rope_parameters") or {}).get(kind) or {}
    old = (text.get("rope_scaling") or {}) if kind == FULL else {}
    return Rope.from_hf({"rope_theta": text.get(theta_name, theta), **old, **new}, where=f"Gemma 3, {kind}")


def param_specs(cfg: Gemma3Config) -> Specs:
    """{"embed", "norm", ["lm_head"], "blocks": {place in the period: layer}, "tail": {...}}."""
    return blocks.table_specs(cfg, initializers.zeros) | stack_specs(cfg.layer_types, partial(_layer_specs, cfg))


def _layer_specs(cfg: Gemma3Config, kind: str, number: int) -> dict[str, Any]:
    layer = LayerSpecs(cfg, number, initializers.zeros)
    norms = ("input", "post_attention", "pre_feedforward", "post_feedforward")
    return {
        **{f"{name}_layernorm": layer.hidden_norm(f"{name}_layernorm") for name in norms},
        "self_attn": layer.attention(),
        "mlp": layer.mlp(),
    }


def init_cache(cfg: Gemma3Config, batch: int, slots: int, dtype: DTypeLike) -> Cache:
    """An empty cache; sliding layers remember their window alone."""

    def layer_cache(kind: str) -> KV:
        window = cfg.sliding_window if kind == SLIDING else None
        return empty_kv(batch, cfg.num_key_value_heads, slots, cfg.head_dim, dtype, window)

    return empty_cache(stack_caches(cfg.layer_types, layer_cache), batch, slots)


def embed(cfg: Gemma3Config, params: Params, tokens: Int[Array, "B T"], place: Place) -> Float[Array, "B T D"]:
    """Embeddings times sqrt(D), which is rounded to their dtype first, as the model was trained (50.6 to 50.5)."""
    x = blocks.embed_tokens(params, tokens, place)
    return x * jnp.asarray(cfg.hidden_size**0.5, x.dtype)


def forward(
    cfg: Gemma3Config,
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
    x = embed(cfg, params, tokens, place)
    attend, cache = Attend.begin(positions, segments, cache)
    angles = {
        SLIDING: rope_angles(cfg.rope_sliding, positions, cfg.head_dim),
        FULL: rope_angles(cfg.rope_full, positions, cfg.head_dim),
    }
    mask = {SLIDING: attend.mask(cfg.sliding_window), FULL: attend.mask()}
    gelu = partial(jax.nn.gelu, approximate=True)

    @jax.named_scope("attention")
    def self_attention(kind: str, p: Params, h: Array, kv: KV | None, row: Array | None) -> tuple[Array, KV | None]:
        q, k, v = (project_heads(p, name, h, cfg.head_dim, place) for name in ("q_proj", "k_proj", "v_proj"))
        q = apply_rope(rms_norm(q, p["q_norm"], cfg.rms_norm_eps), angles[kind])
        k = apply_rope(rms_norm(k, p["k_norm"], cfg.rms_norm_eps), angles[kind])
        out, kv = attend(q, k, v, mask[kind], cfg.query_pre_attn_scalar**-0.5, kv, row)
        return linear(out, p["o_proj"]), kv

    def layer(kind: str, p: Params, x: Array, kv: KV | None, row: Array | None) -> tuple[Array, KV | None]:
        def norm(h: Array, name: str) -> Array:
            return rms_norm(h, p[name], cfg.rms_norm_eps)

        h, kv = self_attention(kind, p["self_attn"], norm(x, "input_layernorm"), kv, row)
        x = x + norm(h, "post_attention_layernorm")
        h = gated_mlp(p["mlp"], norm(x, "pre_feedforward_layernorm"), gelu, place)
        return place(x + norm(h, "post_feedforward_layernorm"), HIDDEN), kv

    x, cache = run_stack(cfg.layer_types, layer, params, x, cache, remat)
    return rms_norm(x, params["norm"], cfg.rms_norm_eps), cache
