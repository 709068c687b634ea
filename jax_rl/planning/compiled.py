"""One program, compiled for a target and never run: its bytes on each device, its collectives, what compiling took."""

import math
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from jax_rl.parallel.sharding import Layout

COLLECTIVES = re.compile(r" (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")
OVER_MEMORY = re.compile(r"(?:total|HLO temporaries) \(([\d.]+)([KMG])\)|Used ([\d.]+)([KMG]) of")


@dataclass(frozen=True)
class Program:
    """One compiled program. Bytes are per device.

    Attributes:
        bytes_per_device: parameters (frozen ones too), optimizer (moments and low bits), gradients (f32, the full set
            that an optimizer step adds up), kv_cache, inputs, temporaries (all else that lives in between).
        peak_bytes: arguments, results and temporaries together; None where the compiler refused and did not say.
        flops: of all calls of one update, by formula, over all devices.
        collectives: operations in the program's text; one inside a loop over layers or tokens counts once.
        calls: how often an update runs it.
        refused: the compiler's words, where it found that the program does not fit.
    """

    name: str
    devices: int
    bytes_per_device: dict[str, int]
    peak_bytes: int | None
    flops: int
    collectives: dict[str, int]
    compile_cpu_seconds: float
    calls: int
    argument_bytes: int = 0  # as the compiler counts what the program is given
    refused: str | None = None


def compile_program(
    name: str, layout: Layout, lower: Callable[[], Any], parts: dict[str, Any], flops: int, calls: int
) -> tuple[Program, Any]:
    """The program, and what the compiler made of it (None: it refused). flops: of all calls."""
    start = time.process_time()
    sizes = {part: tree_bytes(tree) for part, tree in parts.items()}
    program = Program(name, layout.mesh.devices.size, sizes, None, flops, {}, 0.0, calls)
    try:
        compiled = lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        words = str(error).strip().splitlines()[0]
        seconds, wanted = time.process_time() - start, _wanted(words, sum(sizes.values()))
        return replace(program, refused=words, peak_bytes=wanted, compile_cpu_seconds=seconds), None
    memory = compiled.memory_analysis()
    arguments = memory.argument_size_in_bytes
    made = memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    program = replace(
        program,
        bytes_per_device=sizes | {"temporaries": made},
        peak_bytes=arguments + made,
        argument_bytes=arguments,
        collectives=dict(sorted(Counter(COLLECTIVES.findall(compiled.as_text())).items())),
        compile_cpu_seconds=time.process_time() - start,
    )
    return program, compiled


def name_part(program: Program, **sizes: int) -> Program:
    """Names a part of the temporaries."""
    left = max(program.bytes_per_device.get("temporaries", 0) - sum(sizes.values()), 0)
    return replace(program, bytes_per_device=program.bytes_per_device | sizes | {"temporaries": left})


def _wanted(words: str, given: int) -> int | None:
    """Bytes of the whole program, of which the compiler may have counted the temporaries alone."""
    found = OVER_MEMORY.search(words)
    if found is None:
        return None
    number, unit = (part for part in found.groups() if part)
    counted = int(float(number) * 2 ** {"K": 10, "M": 20, "G": 30}[unit])
    return counted + given if "temporaries" in found[0] else counted


def tree_bytes(tree: Any) -> int:
    """On each device."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * _itemsize(x) for x in jax.tree.leaves(tree))


def _itemsize(leaf: jax.ShapeDtypeStruct) -> int:
    """A random key has the bytes of its data."""
    if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return leaf.dtype.itemsize
    data = jax.eval_shape(jax.random.key_data, leaf)
    return data.shape[-1] * data.dtype.itemsize
