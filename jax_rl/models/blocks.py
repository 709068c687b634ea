"""What the families' layers have in common: descriptions of their parameters, the embedding table, the gated MLP.

Logical axes: "vocab", "embed" (the hidden width), "heads" and "kv_heads" (heads times head width), "mlp", "layers".
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
from jax.nn import initializers
from jaxtyping import Array, Float, Int

from jax_rl.models.layers import linear
from jax_rl.models.params import Initializer, Params, ParamSpec
from jax_rl.models.tables import Table

# Constrains an activation's sharding by the logical names of its axes ("batch", "heads", "mlp", ..., None).
Place = Callable[[Array, tuple[str | None, ...]], Array]
HIDDEN = ("batch", None, None)  # axes of hidden states


def keep(x: Array, axes: tuple[str | None, ...]) -> Array:
    """Places nothing: the arrays stay where they are."""
    return x


@runtime_checkable
class DecoderConfig(Protocol):
    """What every family's config has."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def intermediate_size(self) -> int: ...
    @property
    def num_attention_heads(self) -> int: ...
    @property
    def num_key_value_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def initializer_range(self) -> float: ...
    @property
    def tie_word_embeddings(self) -> bool: ...


def table_specs(cfg: DecoderConfig, norm_init: Initializer) -> dict[str, ParamSpec]:
    """{"embed", "norm", ["lm_head"]}: what lies around the stack of layers."""
    table = ((cfg.vocab_size, cfg.hidden_size), ("vocab", "embed"), initializers.normal(cfg.initializer_range))
    specs = {
        "embed": ParamSpec(*table, ("embed_tokens.weight",)),
        "norm": ParamSpec((cfg.hidden_size,), ("embed",), norm_init, ("norm.weight",)),
    }
    return specs if cfg.tie_word_embeddings else specs | {"lm_head": ParamSpec(*table, ("lm_head.weight",))}


@dataclass(frozen=True)
class LayerSpecs:
    """Describes the parameters of layer `number`."""

    cfg: DecoderConfig
    number: int
    norm_init: Initializer  # zeros where norms are centred on 0, ones elsewhere

    def matrix(self, name: str, rows: tuple[int, str | None], columns: tuple[int, str | None]) -> ParamSpec:
        """`name`.weight, (size, logical axis) each."""
        init = initializers.normal(self.cfg.initializer_range)
        hf_name = f"layers.{self.number}.{name}.weight"
        return ParamSpec((rows[0], columns[0]), (rows[1], columns[1]), init, (hf_name,))

    def norm(self, name: str, size: int, axis: str | None = None) -> ParamSpec:
        return ParamSpec((size,), (axis,), self.norm_init, (f"layers.{self.number}.{name}.weight",))

    def hidden_norm(self, name: str) -> ParamSpec:
        return self.norm(name, self.cfg.hidden_size, "embed")

    def attention(self, *, query_parts: int = 1, head_norms: bool = True) -> dict[str, ParamSpec]:
        """`query_parts`: 2 where q_proj also makes an output gate. `head_norms`: on queries and keys."""
        cfg = self.cfg
        hidden = (cfg.hidden_size, "embed")
        heads, kv_heads = cfg.num_attention_heads * cfg.head_dim, (cfg.num_key_value_heads * cfg.head_dim, "kv_heads")
        specs = {
            "q_proj": self.matrix("self_attn.q_proj", (query_parts * heads, "heads"), hidden),
            "k_proj": self.matrix("self_attn.k_proj", kv_heads, hidden),
            "v_proj": self.matrix("self_attn.v_proj", kv_heads, hidden),
            "o_proj": self.matrix("self_attn.o_proj", hidden, (heads, "heads")),
        }
        if head_norms:
            specs |= {name: self.norm(f"self_attn.{name}", cfg.head_dim) for name in ("q_norm", "k_norm")}
        return specs

    def mlp(self) -> dict[str, ParamSpec]:
        hidden, inner = (self.cfg.hidden_size, "embed"), (self.cfg.intermediate_size, "mlp")
        return {
            "gate_proj": self.matrix("mlp.gate_proj", inner, hidden),
            "up_proj": self.matrix("mlp.up_proj", inner, hidden),
            "down_proj": self.matrix("mlp.down_proj", hidden, inner),
        }


def head_name(params: Params) -> str:
    """The key of the matrix whose rows score the vocabulary."""
    return "lm_head" if "lm_head" in params else "embed"


def split_heads(x: Float[Array, "B T NH"], width: int) -> Float[Array, "B T N H"]:
    return x.reshape(*x.shape[:2], -1, width)


def project_heads(p: Params, name: str, h: Float[Array, "B T D"], width: int, place: Place) -> Float[Array, "B T N H"]:
    """The heads that `q_proj`, `k_proj` or `v_proj` makes."""
    axis = "heads" if name == "q_proj" else "kv_heads"
    return place(split_heads(linear(h, p[name]), width), ("batch", None, axis, None))


@jax.named_scope("mlp")
def gated_mlp(
    p: Params, x: Float[Array, "B T D"], activation: Callable[[Array], Array], place: Place
) -> Float[Array, "B T D"]:
    """down(activation(gate x) * up x) (Shazeer 2020, arXiv 2002.05202)."""
    inner = activation(linear(x, p["gate_proj"])) * linear(x, p["up_proj"])
    return linear(place(inner, ("batch", None, "mlp")), p["down_proj"])


def embed_tokens(params: Params, tokens: Int[Array, "B T"], place: Place) -> Float[Array, "B T D"]:
    """[B, T] -> the tokens' rows of the table, which may have been looked up before."""
    table = params["embed"]
    return table.rows if isinstance(table, Table) else look_up(table, tokens, place)


def look_up(table: Float[Array, "V D"], tokens: Int[Array, "B T"], place: Place) -> Float[Array, "B T D"]:
    """Whole rows are looked up: of a table that is cut along both dimensions XLA would first make a full copy."""
    return place(place(table, ("vocab", None))[tokens], HIDDEN)


def text_config(raw: dict[str, Any]) -> dict[str, Any]:
    """The text model's part of a config.json, of a multimodal wrapper or not."""
    return raw.get("text_config") or raw


def read_fields(text: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Each field of `defaults`, with its default where the config leaves it out: hub files omit what equals it."""
    return {name: default if text.get(name) is None else text[name] for name, default in defaults.items()}


def wrong_fields(text: dict[str, Any], required: dict[str, Any]) -> list[str]:
    """A line for each field whose value the forward pass does not implement; absent and null count as right."""
    return [
        f"{name} is {text[name]!r}, must be {right!r}"
        for name, right in required.items()
        if text.get(name) is not None and text[name] != right
    ]
