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

from jax_rl.models.cache import KV, Cache, advance, empty_cache, empty_kv, read_kv, write_kv
from jax_rl.models.errors import ModelError
from jax_rl.models.layers import Rope, apply_rope, attention, linear, rms_norm, rope_angles, visible
from jax_rl.models.params import Params, ParamSpec, Specs
from jax_rl.models.stack import run_stack, stack_caches, stack_specs

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
        text = raw.get("text_config", raw)
        fields = {name: text.get(name, default) for name, default in _DEFAULTS.items()}
        pattern = text.get("sliding_window_pattern") or 6
        kinds = text.get("layer_types") or [
            FULL if (i + 1) % pattern == 0 else SLIDING for i in range(fields["num_hidden_layers"])
        ]
        wrong = [
            f"{name} is {text[name]!r}, must be {right!r}"
            for name, right in _REQUIRED.items()
            if text.get(name, right) != right and not (right is False and text[name] is None)
        ]
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
    width = cfg.hidden_size
    specs = {
        "embed": ParamSpec((cfg.vocab_size, width), ("vocab", "embed"), _normal(cfg), ("embed_tokens.weight",)),
        "norm": ParamSpec((width,), ("embed",), initializers.zeros, ("norm.weight",)),
        **stack_specs(cfg.layer_types, partial(_layer_specs, cfg)),
    }
    if not cfg.tie_word_embeddings:
        specs["lm_head"] = ParamSpec((cfg.vocab_size, width), ("vocab", "embed"), _normal(cfg), ("lm_head.weight",))
    return specs


def _normal(cfg: Gemma3Config) -> initializers.Initializer:
    return initializers.normal(cfg.initializer_range)


def _layer_specs(cfg: Gemma3Config, kind: str, layer: int) -> dict[str, Any]:
    width, mlp, head = cfg.hidden_size, cfg.intermediate_size, cfg.head_dim
    heads, kv_heads = cfg.num_attention_heads * head, cfg.num_key_value_heads * head

    def spec(name: str, shape: tuple[int, ...], axes: tuple[str | None, ...]) -> ParamSpec:
        init = _normal(cfg) if len(shape) > 1 else initializers.zeros
        return ParamSpec(shape, axes, init, (f"layers.{layer}.{name}.weight",))

    return {
        "input_layernorm": spec("input_layernorm", (width,), ("embed",)),
        "self_attn": {
            "q_proj": spec("self_attn.q_proj", (heads, width), ("heads", "embed")),
            "k_proj": spec("self_attn.k_proj", (kv_heads, width), ("kv_heads", "embed")),
            "v_proj": spec("self_attn.v_proj", (kv_heads, width), ("kv_heads", "embed")),
            "o_proj": spec("self_attn.o_proj", (width, heads), ("embed", "heads")),
            "q_norm": spec("self_attn.q_norm", (head,), (None,)),
            "k_norm": spec("self_attn.k_norm", (head,), (None,)),
        },
        "post_attention_layernorm": spec("post_attention_layernorm", (width,), ("embed",)),
        "pre_feedforward_layernorm": spec("pre_feedforward_layernorm", (width,), ("embed",)),
        "mlp": {
            "gate_proj": spec("mlp.gate_proj", (mlp, width), ("mlp", "embed")),
            "up_proj": spec("mlp.up_proj", (mlp, width), ("mlp", "embed")),
            "down_proj": spec("mlp.down_proj", (width, mlp), ("embed", "mlp")),
        },
        "post_feedforward_layernorm": spec("post_feedforward_layernorm", (width,), ("embed",)),
    }


def init_cache(cfg: Gemma3Config, batch: int, slots: int, dtype: DTypeLike) -> Cache:
    """An empty cache. Sliding layers hold all slots too; the visibility rule keeps their window right."""

    def layer_cache(kind: str) -> KV:
        return empty_kv(batch, cfg.num_key_value_heads, slots, cfg.head_dim, dtype)

    return empty_cache(stack_caches(cfg.layer_types, layer_cache), batch, slots)


def embed(cfg: Gemma3Config, params: Params, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    """Embeddings times sqrt(D), which is rounded to their dtype first, as the model was trained (50.6 to 50.5)."""
    x = params["embed"][tokens]
    return x * jnp.asarray(cfg.hidden_size**0.5, x.dtype)


def unembed(params: Params) -> Float[Array, "V D"]:
    """The matrix whose rows score the vocabulary."""
    return params["lm_head"] if "lm_head" in params else params["embed"]


def forward(
    cfg: Gemma3Config,
    params: Params,
    tokens: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    cache: Cache | None = None,
    remat: bool = False,
) -> tuple[Float[Array, "B T D"], Cache | None]:
    """Hidden states after the final norm.

    Args:
        tokens: token ids; anything in range on padding.
        positions: 0, 1, ... along each row's real tokens, -1 on padding, on whichever side.
        cache: None: the tokens see each other. With T > 1: a fresh cache, which they fill (they still see each other
            alone). With T = 1: one more token, which sees what the cache holds.
        remat: see `run_stack`.
    """
    x = embed(cfg, params, tokens)
    decoding = cache is not None and tokens.shape[1] == 1
    slot, key_positions = jnp.int32(0), positions
    if cache is not None:
        slot, cache = cache.length, advance(cache, positions)
        key_positions = cache.positions if decoding else positions
    angles = {
        SLIDING: rope_angles(cfg.rope_sliding, positions, cfg.head_dim),
        FULL: rope_angles(cfg.rope_full, positions, cfg.head_dim),
    }
    mask = {
        SLIDING: visible(positions, key_positions, cfg.sliding_window),
        FULL: visible(positions, key_positions),
    }

    def attend(kind: str, p: Params, h: Array, kv: KV | None, row: Array | None) -> tuple[Array, KV | None]:
        split = partial(jnp.reshape, shape=(*h.shape[:2], -1, cfg.head_dim))
        q = apply_rope(rms_norm(split(linear(h, p["q_proj"])), p["q_norm"], cfg.rms_norm_eps), angles[kind])
        k = apply_rope(rms_norm(split(linear(h, p["k_proj"])), p["k_norm"], cfg.rms_norm_eps), angles[kind])
        v = split(linear(h, p["v_proj"]))
        keys, values = jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)
        if kv is not None:
            kv = write_kv(kv, row, slot, k, v)
            keys, values = read_kv(kv, row) if decoding else (keys, values)
        out = attention(q, keys, values, mask[kind], cfg.query_pre_attn_scalar**-0.5)
        return linear(out.reshape(*h.shape[:2], -1), p["o_proj"]), kv

    def layer(kind: str, p: Params, x: Array, kv: KV | None, row: Array | None) -> tuple[Array, KV | None]:
        def norm(h: Array, name: str) -> Array:
            return rms_norm(h, p[name], cfg.rms_norm_eps)

        h, kv = attend(kind, p["self_attn"], norm(x, "input_layernorm"), kv, row)
        x = x + norm(h, "post_attention_layernorm")
        h = _mlp(p["mlp"], norm(x, "pre_feedforward_layernorm"))
        return x + norm(h, "post_feedforward_layernorm"), kv

    x, layers = run_stack(cfg.layer_types, layer, params, x, None if cache is None else cache.layers, remat)
    if cache is not None:
        cache = Cache(layers, cache.positions, cache.length)
    return rms_norm(x, params["norm"], cfg.rms_norm_eps), cache


def _mlp(p: Params, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    gate = jax.nn.gelu(linear(x, p["gate_proj"]), approximate=True)
    return linear(gate * linear(x, p["up_proj"]), p["down_proj"])
