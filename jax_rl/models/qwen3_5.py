"""Qwen3.5's dense text decoder: three Gated DeltaNet layers to one layer of gated attention.

The numbers agree with transformers' `Qwen3_5ForCausalLM`. Images are not read and the multi-token-prediction layers
not used: export copies both from the checkpoint that training started from. With text alone the three position rows of
M-RoPE are equal, which makes it plain rotary embedding of the first quarter of each head.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn import initializers
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from jax_rl.models import blocks, gated_delta
from jax_rl.models.attend import Attend
from jax_rl.models.blocks import HIDDEN, LayerSpecs, Place, gated_mlp, keep, project_heads, split_heads
from jax_rl.models.cache import KV, Cache, empty_cache, empty_kv, read_state, write_state
from jax_rl.models.errors import ModelError
from jax_rl.models.layers import F32, Rope, apply_rope, linear, plain_rms_norm, rms_norm, rope_angles
from jax_rl.models.params import Params, ParamSpec, Specs
from jax_rl.models.stack import Remat, run_stack, stack_caches, stack_specs

LINEAR, FULL = "linear_attention", "full_attention"

# the vision tower, and layers that predict further tokens
OTHER_TENSORS = ("model.visual.", "visual.", "mtp.")

# what transformers' Qwen3_5TextConfig assumes
_DEFAULTS: dict[str, Any] = {
    "vocab_size": 248320,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
    "rms_norm_eps": 1e-6,
    "initializer_range": 0.02,
}
# what the forward pass takes for granted
_REQUIRED: dict[str, Any] = {"hidden_act": "silu", "attention_bias": False, "attn_output_gate": True}


@dataclass(frozen=True)
class Qwen35Config:
    """Hashable; field names are Hugging Face's."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    linear_num_key_heads: int
    linear_num_value_heads: int
    linear_key_head_dim: int
    linear_value_head_dim: int
    linear_conv_kernel_dim: int
    rms_norm_eps: float
    initializer_range: float
    layer_types: tuple[str, ...]
    rope: Rope
    tie_word_embeddings: bool

    @property
    def key_width(self) -> int:
        """Of all key heads of a DeltaNet layer."""
        return self.linear_num_key_heads * self.linear_key_head_dim

    @property
    def value_width(self) -> int:
        return self.linear_num_value_heads * self.linear_value_head_dim

    @classmethod
    def from_hf(cls, raw: dict[str, Any]) -> "Qwen35Config":
        """Reads a config.json of the text model or of the multimodal wrapper.

        Raises:
            ModelError: all the fields whose values are not implemented, in one message.
        """
        text = blocks.text_config(raw)
        fields = blocks.read_fields(text, _DEFAULTS)
        layers, interval = fields["num_hidden_layers"], text.get("full_attention_interval") or 4
        kinds = text.get("layer_types") or [FULL if (i + 1) % interval == 0 else LINEAR for i in range(layers)]
        wrong = blocks.wrong_fields(text, _REQUIRED)
        wrong += [f"layer_types has an unknown kind {kind!r}" for kind in sorted(set(kinds) - {LINEAR, FULL})]
        if len(kinds) != layers:
            wrong.append(f"layer_types has {len(kinds)} entries, num_hidden_layers is {layers}")
        if wrong:
            raise ModelError("this Qwen3.5 config.json is not supported: " + "; ".join(wrong))
        rope = {"rope_theta": text.get("rope_theta") or 10_000.0}
        rope |= {"partial_rotary_factor": text.get("partial_rotary_factor") or 0.25}
        rope |= {**(text.get("rope_scaling") or {}), **(text.get("rope_parameters") or {})}
        tied = raw.get("tie_word_embeddings", text.get("tie_word_embeddings"))
        return cls(
            **fields,
            layer_types=tuple(kinds),
            rope=Rope.from_hf(rope, where="Qwen3.5"),
            tie_word_embeddings=bool(tied),
        )


def param_specs(cfg: Qwen35Config) -> Specs:
    """{"embed", "norm", ["lm_head"], "blocks": {place in the period: layer}, "tail": {...}}."""
    return blocks.table_specs(cfg, initializers.zeros) | stack_specs(cfg.layer_types, partial(_layer_specs, cfg))


def _layer_specs(cfg: Qwen35Config, kind: str, number: int) -> dict[str, Any]:
    layer = LayerSpecs(cfg, number, initializers.zeros)
    mixer = {"self_attn": layer.attention(query_parts=2)} if kind == FULL else {"linear_attn": _delta_specs(cfg, layer)}
    return {
        "input_layernorm": layer.hidden_norm("input_layernorm"),
        **mixer,
        "post_attention_layernorm": layer.hidden_norm("post_attention_layernorm"),
        "mlp": layer.mlp(),
    }


def _delta_specs(cfg: Qwen35Config, layer: LayerSpecs) -> dict[str, ParamSpec]:
    """Logical axes: "delta_qkv" (all heads' queries, keys and values, one after the other), "delta_heads"."""
    hidden, value_heads = (cfg.hidden_size, "embed"), (cfg.linear_num_value_heads, "delta_heads")
    mixed, values = (2 * cfg.key_width + cfg.value_width, "delta_qkv"), (cfg.value_width, "delta_heads")
    prefix = f"layers.{layer.number}.linear_attn"

    def log_decay_rates(key: Array, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        return jnp.log(jax.random.uniform(key, shape, F32, 0.01, 16.0)).astype(dtype)

    def per_head(name: str, init: Any) -> ParamSpec:
        return ParamSpec((value_heads[0],), (value_heads[1],), init, (f"{prefix}.{name}",), wide=True)

    def ones(name: str, size: int) -> ParamSpec:
        return ParamSpec((size,), (None,), initializers.ones, (f"{prefix}.{name}.weight",))

    conv_shape = (mixed[0], 1, cfg.linear_conv_kernel_dim)
    conv_init = initializers.normal(cfg.initializer_range)
    return {
        "in_proj_qkv": layer.matrix("linear_attn.in_proj_qkv", mixed, hidden),
        "in_proj_z": layer.matrix("linear_attn.in_proj_z", values, hidden),
        "in_proj_b": layer.matrix("linear_attn.in_proj_b", value_heads, hidden),
        "in_proj_a": layer.matrix("linear_attn.in_proj_a", value_heads, hidden),
        "conv1d": ParamSpec(conv_shape, ("delta_qkv", None, None), conv_init, (f"{prefix}.conv1d.weight",)),
        "A_log": per_head("A_log", log_decay_rates),
        "dt_bias": per_head("dt_bias", initializers.ones),
        "norm": ones("norm", cfg.linear_value_head_dim),
        "out_proj": layer.matrix("linear_attn.out_proj", hidden, values),
    }


def init_cache(cfg: Qwen35Config, batch: int, slots: int, dtype: DTypeLike) -> Cache:
    """An empty cache: keys and values of the attention layers; of the DeltaNet layers the state (float32) and the last
    inputs of the convolution, which need no slots.
    """

    def layer_cache(kind: str) -> KV | dict[str, Array]:
        if kind == FULL:
            return empty_kv(batch, cfg.num_key_value_heads, slots, cfg.head_dim, dtype)
        return _empty_memory(cfg, batch, dtype)

    return empty_cache(stack_caches(cfg.layer_types, layer_cache), batch, slots)


def _empty_memory(cfg: Qwen35Config, batch: int, dtype: DTypeLike) -> dict[str, Array]:
    """What a DeltaNet layer remembers before the first token."""
    state = (batch, cfg.linear_num_value_heads, cfg.linear_key_head_dim, cfg.linear_value_head_dim)
    window = (batch, cfg.linear_conv_kernel_dim - 1, 2 * cfg.key_width + cfg.value_width)
    return {"conv": jnp.zeros(window, dtype), "state": jnp.zeros(state, F32)}


def causal_conv(
    x: Float[Array, "B T C"],
    weight: Float[Array, "C 1 W"],
    before: Float[Array, "B W-1 C"],
    valid: Bool[Array, "B T"],
    segments: Int[Array, "B T"] | None,
) -> tuple[Float[Array, "B T C"], Float[Array, "B W-1 C"]]:
    """Each channel's own filter over the last W inputs, then SiLU; also the last W-1 real inputs of each row.

    `before` are the inputs that precede x. Inputs of another segment count as 0, as do padding tokens (0 in x).
    """
    length, width = x.shape[1], weight.shape[-1]
    padded = jnp.concatenate([before.astype(x.dtype), x], axis=1)
    out = jnp.zeros(x.shape, F32)
    for tap in range(width):
        inputs = padded[:, tap : tap + length]
        if segments is not None:
            theirs = jnp.pad(segments, ((0, 0), (width - 1, 0)), constant_values=-1)[:, tap : tap + length]
            inputs = jnp.where(jnp.equal(theirs, segments)[..., None], inputs, 0)
        out += inputs.astype(F32) * weight[:, 0, tap].astype(F32)
    last = width - 1 + jnp.max(jnp.where(valid, jnp.arange(length), -1), axis=1, keepdims=True)
    newest = last - jnp.arange(width - 2, -1, -1)  # [B, W-1] places in `padded`
    return jax.nn.silu(out).astype(x.dtype), jnp.take_along_axis(padded, newest[..., None], axis=1)


@jax.named_scope("linear_attention")
def gated_delta_net(
    cfg: Qwen35Config,
    p: Params,
    x: Float[Array, "B T D"],
    valid: Bool[Array, "B T"],
    segments: Int[Array, "B T"] | None,
    cache: dict[str, Array] | None,
    row: Int[Array, ""] | None,
    place: Place,
) -> tuple[Float[Array, "B T D"], dict[str, Array] | None]:
    """One DeltaNet layer. Padding neither decays the state nor writes to it, on whichever side it is."""
    heads = ("batch", None, "delta_heads", None)
    x = jnp.where(valid[..., None], x, 0)
    memory = _empty_memory(cfg, len(x), x.dtype) if cache is None else read_state(cache, row)
    mixed, window = causal_conv(linear(x, p["in_proj_qkv"]), p["conv1d"], memory["conv"], valid, segments)
    q, k, v = jnp.split(mixed, [cfg.key_width, 2 * cfg.key_width], axis=-1)
    q, k = split_heads(q, cfg.linear_key_head_dim), split_heads(k, cfg.linear_key_head_dim)
    v = place(split_heads(v, cfg.linear_value_head_dim), heads)
    beta = jax.nn.sigmoid(linear(x, p["in_proj_b"]).astype(F32)) * valid[..., None]
    decay = jax.nn.softplus(linear(x, p["in_proj_a"]).astype(F32) + p["dt_bias"])
    g = -jnp.exp(p["A_log"].astype(F32)) * decay * valid[..., None]
    if x.shape[1] == 1:
        out, state = gated_delta.recurrent(q, k, v, g, beta, memory["state"])
    else:
        out, state = gated_delta.chunked(q, k, v, g, beta, memory["state"], segments)
    gate = split_heads(linear(x, p["in_proj_z"]), cfg.linear_value_head_dim)
    out = plain_rms_norm(place(out, heads).astype(x.dtype), p["norm"], cfg.rms_norm_eps).astype(F32)
    out = (out * jax.nn.silu(gate.astype(F32))).astype(x.dtype)
    if cache is not None:
        cache = write_state(cache, row, {"conv": window, "state": state})
    return linear(out.reshape(*x.shape[:2], -1), p["out_proj"]), cache


def forward(
    cfg: Qwen35Config,
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
    valid = jnp.greater_equal(positions, 0)

    @jax.named_scope("attention")
    def gated_attention(p: Params, h: Array, kv: KV | None, row: Array | None) -> tuple[Array, KV | None]:
        q, gate = jnp.split(split_heads(linear(h, p["q_proj"]), 2 * cfg.head_dim), 2, axis=-1)  # of each head
        q = place(rms_norm(q, p["q_norm"], cfg.rms_norm_eps), ("batch", None, "heads", None))
        k, v = (project_heads(p, name, h, cfg.head_dim, place) for name in ("k_proj", "v_proj"))
        k = rms_norm(k, p["k_norm"], cfg.rms_norm_eps)
        q, k = apply_rope(q, angles), apply_rope(k, angles)
        out, kv = attend(q, k, v, mask, cfg.head_dim**-0.5, kv, row)
        return linear(out * jax.nn.sigmoid(gate.reshape(out.shape)), p["o_proj"]), kv

    def layer(kind: str, p: Params, x: Array, memory: Any, row: Array | None) -> tuple[Array, Any]:
        h = rms_norm(x, p["input_layernorm"], cfg.rms_norm_eps)
        if kind == FULL:
            h, memory = gated_attention(p["self_attn"], h, memory, row)
        else:
            h, memory = gated_delta_net(cfg, p["linear_attn"], h, valid, segments, memory, row, place)
        x = x + h
        h = rms_norm(x, p["post_attention_layernorm"], cfg.rms_norm_eps)
        return place(x + gated_mlp(p["mlp"], h, jax.nn.silu, place), HIDDEN), memory

    x, cache = run_stack(cfg.layer_types, layer, params, x, cache, remat)
    return rms_norm(x, params["norm"], cfg.rms_norm_eps), cache
