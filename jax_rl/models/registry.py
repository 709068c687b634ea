"""From a checkpoint's `model_type` to the code that runs it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jax_rl.models import cache as kv_cache
from jax_rl.models import gemma3
from jax_rl.models.cache import Cache
from jax_rl.models.errors import ModelError
from jax_rl.models.params import Params, Specs, init_params


@dataclass(frozen=True)
class Family:
    """What a family's file offers; `cfg` is its own frozen config."""

    name: str
    read_config: Callable[[dict[str, Any]], Any]  # config.json -> cfg
    param_specs: Callable[[Any], Specs]
    forward: Callable[..., tuple[Array, Cache | None]]
    unembed: Callable[[Params], Array]
    init_cache: Callable[[Any, int, int, DTypeLike], Cache]
    other_tensors: tuple[str, ...] = ()  # prefixes of tensors that are not the text model's: kept, never loaded


GEMMA3 = Family(
    "gemma3",
    gemma3.Gemma3Config.from_hf,
    gemma3.param_specs,
    gemma3.forward,
    gemma3.unembed,
    gemma3.init_cache,
    gemma3.OTHER_TENSORS,
)

FAMILIES: dict[str, Family] = {"gemma3": GEMMA3, "gemma3_text": GEMMA3}  # by the model_type of config.json


@dataclass(frozen=True)
class Model:
    """A family with its config: pure functions over a tree of parameters. Hashable: jitted code closes over it."""

    family: Family
    cfg: Any

    @property
    def specs(self) -> Specs:
        return self.family.param_specs(self.cfg)

    def init(self, key: jax.Array, dtype: DTypeLike) -> Params:
        """Random parameters."""
        return init_params(self.specs, key, dtype)

    def init_cache(self, batch: int, slots: int, dtype: DTypeLike) -> Cache:
        return self.family.init_cache(self.cfg, batch, slots, dtype)

    def forward(
        self,
        params: Params,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        cache: Cache | None = None,
        remat: bool = False,
    ) -> tuple[Float[Array, "B T D"], Cache | None]:
        """Hidden states after the final norm, and the cache with the tokens added: see `gemma3.forward`."""
        return self.family.forward(self.cfg, params, tokens, positions, cache=cache, remat=remat)

    def unembed(self, params: Params) -> Float[Array, "V D"]:
        return self.family.unembed(params)

    def logits(self, params: Params, hidden: Float[Array, "*rows D"]) -> Float[Array, "*rows V"]:
        """In float32. For a few rows: [B, T, V] of a training batch must never exist."""
        return jnp.einsum("...d,vd->...v", hidden, self.unembed(params), preferred_element_type=jnp.float32)

    def map_cache_rows(self, cache: Cache, fn: Callable[[Array, int], Array]) -> Cache:
        """Applies `fn(array, batch axis)` to everything that has rows: repeat each G times, gather the live ones."""
        return kv_cache.map_cache_rows(cache, fn)

    def grow_cache(self, cache: Cache, slots: int) -> Cache:
        """The same cache with room for more tokens."""
        return kv_cache.grow_cache(cache, slots)


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
