"""Qwen3.5's text model once more, in float64 numpy and token by token: the truth that float32 is measured against."""

import numpy as np


def rms(x, eps):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def silu(x):
    return x * sigmoid(x)


def rope(x, theta, rotated):
    """x [T, N, H]: the pairs (i, i + rotated/2) of the first `rotated` dimensions."""
    angle = np.arange(len(x))[:, None] * theta ** (-np.arange(0, rotated, 2) / rotated)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    a, b = x[..., : rotated // 2], x[..., rotated // 2 : rotated]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin, x[..., rotated:]], -1)


def attention(w, cfg, h):
    length, heads, groups, width = len(h), cfg.num_attention_heads, cfg.num_key_value_heads, cfg.head_dim
    q, gate = np.split((h @ w("self_attn.q_proj.weight").T).reshape(length, heads, 2 * width), 2, -1)
    k = (h @ w("self_attn.k_proj.weight").T).reshape(length, groups, width)
    v = (h @ w("self_attn.v_proj.weight").T).reshape(length, groups, width)
    q = rms(q, cfg.rms_norm_eps) * (1 + w("self_attn.q_norm.weight"))
    k = rms(k, cfg.rms_norm_eps) * (1 + w("self_attn.k_norm.weight"))
    parameters = cfg.rope_parameters
    rotated = int(width * parameters["partial_rotary_factor"])
    q, k = (rope(x, parameters["rope_theta"], rotated) for x in (q, k))
    out = np.empty((length, heads, width))
    for head in range(heads):
        group = head // (heads // groups)
        scores = np.where(np.tri(length, dtype=bool), q[:, head] @ k[:, group].T * width**-0.5, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        out[:, head] = weights / weights.sum(-1, keepdims=True) @ v[:, group]
    return (out * sigmoid(gate)).reshape(length, -1) @ w("self_attn.o_proj.weight").T


def delta_net(w, cfg, h):
    key_heads, heads = cfg.linear_num_key_heads, cfg.linear_num_value_heads
    dk, dv, taps = cfg.linear_key_head_dim, cfg.linear_value_head_dim, cfg.linear_conv_kernel_dim
    mixed = h @ w("linear_attn.in_proj_qkv.weight").T
    before = np.concatenate([np.zeros((taps - 1, mixed.shape[1])), mixed])
    kernel = w("linear_attn.conv1d.weight")[:, 0]
    mixed = silu(sum(before[i : i + len(h)] * kernel[:, i] for i in range(taps)))
    q, k, v = np.split(mixed, [key_heads * dk, 2 * key_heads * dk], -1)
    q, k = (x.reshape(-1, key_heads, dk) for x in (q, k))
    q, k = (x / np.sqrt((x * x).sum(-1, keepdims=True) + 1e-6) for x in (q, k))
    v = v.reshape(-1, heads, dv)
    beta = sigmoid(h @ w("linear_attn.in_proj_b.weight").T)
    rate = np.log1p(np.exp(h @ w("linear_attn.in_proj_a.weight").T + w("linear_attn.dt_bias")))
    kept = np.exp(-np.exp(w("linear_attn.A_log")) * rate)
    out = np.empty_like(v)
    for head in range(heads):
        state, key_head = np.zeros((dk, dv)), head // (heads // key_heads)
        for t in range(len(h)):
            state *= kept[t, head]
            error = beta[t, head] * (v[t, head] - k[t, key_head] @ state)
            state += np.outer(k[t, key_head], error)
            out[t, head] = q[t, key_head] * dk**-0.5 @ state
    gate = (h @ w("linear_attn.in_proj_z.weight").T).reshape(-1, heads, dv)
    out = rms(out, cfg.rms_norm_eps) * w("linear_attn.norm.weight") * silu(gate)
    return out.reshape(len(h), -1) @ w("linear_attn.out_proj.weight").T


def logits(weights, cfg, tokens):
    """[T, V] from a dict of float64 arrays under transformers' names, `model.` left out, and its config."""
    x = weights["embed_tokens.weight"][tokens]
    for layer, kind in enumerate(cfg.layer_types):

        def w(name, layer=layer):
            return weights[f"layers.{layer}.{name}"]

        h = rms(x, cfg.rms_norm_eps) * (1 + w("input_layernorm.weight"))
        x = x + (attention(w, cfg, h) if kind == "full_attention" else delta_net(w, cfg, h))
        h = rms(x, cfg.rms_norm_eps) * (1 + w("post_attention_layernorm.weight"))
        x = x + (silu(h @ w("mlp.gate_proj.weight").T) * (h @ w("mlp.up_proj.weight").T)) @ w("mlp.down_proj.weight").T
    x = rms(x, cfg.rms_norm_eps) * (1 + weights["norm.weight"])
    return x @ weights["lm_head.weight"].T
