"""From a checkpoint's `model_type` to the code that runs it."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Shaped

from jax_rl.models import cache as kv_cache
from jax_rl.models import gemma3, llama, qwen3_5, sharing
from jax_rl.models.blocks import Place, head_name, keep
from jax_rl.models.cache import Cache
from jax_rl.models.errors import ModelError
from jax_rl.models.lora import Adapted
from jax_rl.models.params import Params, ParamSpec, Specs, init_params, read_held
from jax_rl.models.sharing import Places
from jax_rl.models.stack import Remat, is_unrolled, unroll
from jax_rl.models.tables import Table


@dataclass(frozen=True)
class Family:
    """What a family's file offers; `cfg` is its own frozen config."""

    name: str
    read_config: Callable[[dict[str, Any]], Any]  # config.json -> cfg
    param_specs: Callable[[Any], Specs]
    forward: Callable[..., tuple[Array, Cache | None]]
    init_cache: Callable[[Any, int, int, DTypeLike], Cache]
    other_tensors: tuple[str, ...] = ()  # prefixes of tensors that are not the text model's: kept, never loaded
    recurrent: bool = False  # has layers whose state takes in one token after the other: no prefix is shared in a row


GEMMA3 = Family(
    "gemma3",
    gemma3.Gemma3Config.from_hf,
    gemma3.param_specs,
    gemma3.forward,
    gemma3.init_cache,
    gemma3.OTHER_TENSORS,
)
QWEN3_5 = Family(
    "qwen3_5",
    qwen3_5.Qwen35Config.from_hf,
    qwen3_5.param_specs,
    qwen3_5.forward,
    qwen3_5.init_cache,
    qwen3_5.OTHER_TENSORS,
    recurrent=True,
)
LLAMA = Family("llama", llama.LlamaConfig.from_hf, llama.param_specs, llama.forward, llama.init_cache)

FAMILIES: dict[str, Family] = {  # by the model_type of config.json
    "gemma3": GEMMA3,
    "gemma3_text": GEMMA3,
    "llama": LLAMA,
    "qwen3": LLAMA,
    "qwen3_5": QWEN3_5,
    "qwen3_5_text": QWEN3_5,
}


@dataclass(frozen=True)
class Model:
    """A family with its config: pure functions over a tree of parameters. Hashable: jitted code closes over it."""

    family: Family
    cfg: Any
    place: Place = keep  # constrains the sharding of activations

    @property
    def specs(self) -> Specs:
        return self.family.param_specs(self.cfg)

    @property
    def shares_prompts(self) -> bool:
        """Whether completions in one row can share their prompt (`segments` 0)."""
        return not self.family.recurrent

    def init(self, key: jax.Array, dtype: DTypeLike) -> Params:
        """Random parameters."""
        return init_params(self.specs, key, dtype)

    def init_cache(self, batch: int, slots: int, dtype: DTypeLike) -> Cache:
        return kv_cache.place_cache(self.family.init_cache(self.cfg, batch, slots, dtype), self.place)

    def forward(
        self,
        params: Params,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        cache: Cache | None = None,
        segments: Int[Array, "B T"] | None = None,
        remat: Remat | None = None,
    ) -> tuple[Float[Array, "B T D"], Cache | None]:
        """Hidden states after the final norm, and the cache with the tokens added.

        Args:
            tokens: token ids; anything in range on padding.
            positions: 0, 1, ... along each row's (or segment's) real tokens, -1 on padding, on whichever side.
            cache: None: the tokens see each other. With T > 1: a fresh cache, which they fill (they still see each
                other alone). With T = 1: one more token, which sees what the cache holds.
            segments: several texts in a row: a token sees its own segment, and segment 0, a prefix that all share.
                Recurrent families start each segment from nothing and can share none: number from 1. Not with a cache.
            remat: what the backward pass computes again (`stack.Remat`); None: nothing.
        """
        run = partial(self.family.forward, self.cfg, self._read(params), remat=remat, place=self.place)
        if cache is None or tokens.shape[1] == 1:
            return run(tokens, positions, cache=cache, segments=segments)
        # A window's ring keeps the last slots: each row's last token must lie in the last one, padding to its left.
        columns = jnp.arange(tokens.shape[1])
        padding = columns[-1] - jnp.max(jnp.where(positions >= 0, columns, 0), axis=1)
        hidden, cache = run(_roll_rows(tokens, padding), _roll_rows(positions, padding), cache=cache, segments=segments)
        return _roll_rows(hidden, -padding), cache

    def unroll(self, params: Params) -> Params:
        """The parameters with every layer apart, for use inside a program with caches that are `unroll`ed too."""
        return unroll(self._read(params))

    def unembed(self, params: Params) -> Float[Array, "V D"] | Table:
        """The matrix whose rows score the vocabulary."""
        params = self._read(params)
        return params[head_name(params)]

    def _read(self, params: Params) -> Params:
        """Without the zeros that a mesh may hold parameters with."""
        if is_unrolled(params):
            return params  # as `unroll` has read them

        def read(spec: ParamSpec, leaf: Array | Adapted | Table) -> Any:
            if isinstance(leaf, Table):
                return leaf.read(spec)
            if isinstance(leaf, Adapted):
                return replace(leaf, weight=read_held(spec, leaf.weight))
            return read_held(spec, leaf)

        return jax.tree.map(read, self.specs, params)

    @jax.named_scope("unembed")
    def logits(self, params: Params, hidden: Float[Array, "*rows D"]) -> Float[Array, "*rows V"]:
        """In float32. For a few rows: [B, T, V] of a training batch must never exist."""
        return jnp.einsum("...d,vd->...v", hidden, self.unembed(params), preferred_element_type=jnp.float32)

    def share_prompts(self, cache: Cache, places: Places, slots: int) -> Cache:
        """From a cache that prompts have filled to one of empty slots for the rows that continue them."""
        return kv_cache.place_cache(sharing.share_prompts(cache, places, slots), self.place)

    def keep_rows(
        self, cache: Cache, rows: Int[Array, " kept"], prompts: Int[Array, " kept_prompts"], places: Places
    ) -> Cache:
        """Of such a cache some rows and some prompts alone; `places`: of those."""
        return kv_cache.place_cache(sharing.keep_rows(cache, rows, prompts, places), self.place)

    def grow_cache(self, cache: Cache, slots: int) -> Cache:
        """The same cache with room for more tokens."""
        return kv_cache.place_cache(kv_cache.grow_cache(cache, slots), self.place)


def _roll_rows(x: Shaped[Array, "B T ..."], shift: Int[Array, " B"]) -> Shaped[Array, "B T ..."]:
    """`jnp.roll` of each row by its own shift."""
    return jax.vmap(partial(jnp.roll, axis=0))(x, shift)


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json.

    Raises:
        ModelError: there is none, or it is not a JSON object.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(f"{folder} is not a Hugging Face checkpoint: it has no config.json")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(raw, dict):
        raise ModelError(f"{path} must hold a JSON object, not a {type(raw).__name__}")
    return raw


def model_from_config(raw: dict[str, Any]) -> Model:
    """The model that a config.json describes.

    Raises:
        ModelError: an unknown `model_type`, or fields that the family does not support.
    """
    model_type = raw.get("model_type")
    if model_type not in FAMILIES:
        raise ModelError(f"model_type {model_type!r} is not known; known: {', '.join(sorted(FAMILIES))}")
    family = FAMILIES[model_type]
    return Model(family, family.read_config(raw))
