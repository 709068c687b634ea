"""A program that the TPU compiler refuses is one that does not fit, not an error."""

import importlib.util
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from jax_rl.parallel.sharding import Layout
from jax_rl.planning.compiled import compile_program
from jax_rl.planning.targets import open_target


def layout_of(devices):
    return Layout(Mesh(np.array(devices).reshape(1, -1, 1), ("data", "fsdp", "tensor")))


@pytest.mark.parametrize(
    "words, wanted",
    [
        ("RESOURCE_EXHAUSTED: Ran out of memory on HBM, total (20.00G) exceeds available HBM (15.75G)", 20 * 2**30),
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 512.5M of 256.00M hbm.", 1025 * 2**19),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (48.00G) "
            "exceeds available HBM (15.75G).",
            48 * 2**30 + 4,
        ),
        ("RESOURCE_EXHAUSTED: no number", None),
    ],
)
def test_the_compiler_s_words_become_bytes(words, wanted):
    def lower():
        raise jax.errors.JaxRuntimeError(words)

    layout = layout_of(jax.devices()[:1])
    one = jax.ShapeDtypeStruct((), jnp.float32, sharding=layout.replicated)
    program, compiled = compile_program("huge", layout, lower, {"inputs": one}, 0, 1)
    assert compiled is None and program.refused == words and program.peak_bytes == wanted


def test_other_errors_of_the_compiler_are_errors():
    def lower():
        raise jax.errors.JaxRuntimeError("INTERNAL: a bug")

    with pytest.raises(jax.errors.JaxRuntimeError, match="a bug"):
        compile_program("broken", layout_of(jax.devices()[:1]), lower, {}, 0, 1)


def test_a_real_refusal_says_how_much_was_wanted():
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed (an optional extra)")
    layout = layout_of(open_target("v5e:2x2").hosts[0])
    matrix = jax.ShapeDtypeStruct((2**16, 2**16), jnp.float32, sharding=layout.replicated)
    lower = partial(jax.jit(jnp.matmul).lower, matrix, matrix)
    program, compiled = compile_program("huge", layout, lower, {"inputs": matrix}, 0, 1)
    assert compiled is None and program.refused.startswith("RESOURCE_EXHAUSTED")
    assert program.peak_bytes > 16 * 2**30
