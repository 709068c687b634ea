"""A stack of unlike layers, scanned over its repeating period, so that compile time does not grow with depth.

Gemma 3 with 34 layers is (5 sliding + 1 full) x 5 and a tail of 4 sliding layers. The parameters of the first layer of
all periods lie in one array with a leading `repeats` axis, and so on: {"blocks": {"0": ..., "5": ...}, "tail": {"0":
...}}. The tail keeps arrays of its own: cut out of a stack inside jit they would be copied at every step. A stack
without repetition is all tail.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from operator import itemgetter
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jax_rl.models.attend import ATTENTION_OUT
from jax_rl.models.cache import Cache
from jax_rl.models.params import ParamSpec, read_layer

# What the backward pass computes again. full: all of a layer but its attention, of which only its input and that output
# are kept. minimal: all but attention and the products with weights, which are kept too.
Remat = Literal["full", "minimal"]
_ATTENTION = jax.checkpoint_policies.save_only_these_names(ATTENTION_OUT)
_PRODUCTS = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
POLICIES: dict[Remat, Callable[..., Any]] = {
    "full": _ATTENTION,
    "minimal": jax.checkpoint_policies.save_from_both_policies(_ATTENTION, _PRODUCTS),
}

# (kind, parameters of one layer, hidden states, the cache of its place or None, its row in that cache: None in the
# tail) -> (hidden states, cache)
Layer = Callable[[str, Any, Array, Any, Array | None], tuple[Array, Any]]


@dataclass(frozen=True)
class Period:
    """`kinds` repeated `repeats` times, then `tail`."""

    kinds: tuple[str, ...]
    repeats: int
    tail: tuple[str, ...]


@lru_cache
def find_period(kinds: tuple[str, ...]) -> Period:
    """The split with the fewest layers to trace; an irregular list falls back towards all of them."""
    best = Period((), 0, kinds)
    for width in range(1, len(kinds) // 2 + 1):
        repeats = 1
        while kinds[repeats * width : (repeats + 1) * width] == kinds[:width]:
            repeats += 1
        tail = kinds[repeats * width :]
        if repeats > 1 and width + len(tail) < len(best.kinds) + len(best.tail):
            best = Period(kinds[:width], repeats, tail)
    return best


def stack_specs(kinds: tuple[str, ...], layer_specs: Callable[[str, int], dict[str, Any]]) -> dict[str, Any]:
    """{"blocks": ..., "tail": ...}, as far as not empty, from `layer_specs(kind, number)`: the specs of a layer."""
    period = find_period(kinds)
    width = len(period.kinds)

    def stacked(place: int) -> dict[str, Any]:
        trees = [layer_specs(kinds[place], place + repeat * width) for repeat in range(period.repeats)]
        return jax.tree.map(_stack, *trees)

    first_of_tail = width * period.repeats
    specs = {
        "blocks": {str(place): stacked(place) for place in range(width)},
        "tail": {str(i): layer_specs(kind, first_of_tail + i) for i, kind in enumerate(period.tail)},
    }
    return {name: layers for name, layers in specs.items() if layers}  # NNX would drop an empty one


def _stack(*layers: ParamSpec) -> ParamSpec:
    return layers[0].stack(tuple(name for layer in layers for name in layer.hf_names))


def stack_caches(kinds: tuple[str, ...], layer_cache: Callable[[str], Any]) -> dict[str, Any]:
    """Caches of all layers from `layer_cache(kind)`, the zeros of one, laid out as the parameters are."""
    period = find_period(kinds)

    def stacked(kind: str) -> Any:
        return jax.tree.map(lambda leaf: jnp.zeros((period.repeats, *leaf.shape), leaf.dtype), layer_cache(kind))

    return {
        "blocks": {str(i): stacked(kind) for i, kind in enumerate(period.kinds)},
        "tail": {str(i): layer_cache(kind) for i, kind in enumerate(period.tail)},
    }


def unroll(layers: dict[str, Any]) -> dict[str, Any]:
    """Parameters or caches with a list of blocks, one after the other, for stacked ones: `run_stack` then runs them
    without a scan. A copy of them all, and a longer program, for steps that then copy no layer out of its stack.
    """
    if not layers.get("blocks"):
        return layers
    repeats = jax.tree.leaves(layers["blocks"])[0].shape[0]
    return layers | {"blocks": [jax.tree.map(itemgetter(i), layers["blocks"]) for i in range(repeats)]}


def is_unrolled(layers: dict[str, Any]) -> bool:
    return isinstance(layers.get("blocks"), list)


def stack_again(layers: dict[str, Any]) -> dict[str, Any]:
    """What `unroll` was given."""
    if not layers.get("blocks"):
        return layers
    return layers | {"blocks": jax.tree.map(lambda *blocks: jnp.stack(blocks), *layers["blocks"])}


def run_stack(
    kinds: tuple[str, ...],
    layer: Layer,
    params: dict[str, Any],
    x: Float[Array, "B T D"],
    cache: Cache | None = None,
    remat: Remat | None = None,
) -> tuple[Float[Array, "B T D"], Cache | None]:
    """All layers in order. Their caches ride in the loop's carry, where XLA updates them in place; as scanned inputs
    and outputs they would be held twice.

    params, cache: stacked, or both unrolled.
    remat: what the backward pass computes again; None: nothing.
    """
    period = find_period(kinds)

    def call(kind: str, scanned: bool) -> Callable:
        def bound(p: Any, x: Array, cache: Any, row: Array | None) -> tuple[Array, Any]:
            return layer(kind, read_layer(p), x, cache, row)

        if remat is None:
            return bound
        # inside scan, forward and backward are separate loops that XLA cannot merge again
        return jax.checkpoint(bound, prevent_cse=not scanned, policy=POLICIES[remat])

    caches = stack_caches(kinds, lambda kind: None) if cache is None else cache.layers
    in_blocks = caches["blocks"]

    def block(carry: tuple[Array, dict], xs: tuple[Array, dict]) -> tuple[tuple[Array, dict], None]:
        (x, kept), (row, p) = carry, xs
        kept = dict(kept)
        for place, kind in enumerate(period.kinds):
            x, kept[str(place)] = call(kind, scanned=True)(p[str(place)], x, kept[str(place)], row)
        return (x, kept), None

    if is_unrolled(params):
        in_blocks = [dict(kept) for kept in in_blocks]
        for p, kept in zip(params["blocks"], in_blocks, strict=True):
            for place, kind in enumerate(period.kinds):
                x, kept[str(place)] = call(kind, scanned=False)(p[str(place)], x, kept[str(place)], None)
    elif period.repeats:
        rows = jnp.arange(period.repeats, dtype=jnp.int32)
        (x, in_blocks), _ = lax.scan(block, (x, in_blocks), (rows, params["blocks"]))
    in_tail = dict(caches["tail"])
    for place, kind in enumerate(period.tail):
        p = params["tail"][str(place)]
        x, in_tail[str(place)] = call(kind, scanned=False)(p, x, in_tail[str(place)], None)
    return x, None if cache is None else replace(cache, layers={"blocks": in_blocks, "tail": in_tail})
