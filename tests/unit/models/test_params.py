"""What follows from a parameter's description agrees with the parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.nn import initializers
from jax.sharding import SingleDeviceSharding

from jax_rl.models.params import ParamSpec, abstract_params, count_params, init_params, param_bytes

SPECS = {
    "w": ParamSpec((2, 64, 32), ("layers", "mlp", "embed"), initializers.normal(0.1), ("a", "b"), stacked=True),
    "norm": {"scale": ParamSpec((32,), ("embed",), initializers.zeros, ("c",))},
}


def test_init_abstract_and_counts_agree():
    params = init_params(SPECS, jax.random.key(0), jnp.bfloat16)
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), params)
    assert abstract_params(SPECS, jnp.bfloat16) == shapes
    assert count_params(SPECS) == sum(a.size for a in jax.tree.leaves(params))
    assert param_bytes(SPECS, jnp.bfloat16) == sum(a.nbytes for a in jax.tree.leaves(params))
    assert abs(np.std(params["w"].astype(np.float32)) - 0.1) < 0.01 and not params["norm"]["scale"].any()


def test_the_abstract_tree_carries_shardings():
    here = SingleDeviceSharding(jax.devices()[0])
    tree = abstract_params(SPECS, jnp.float32, lambda spec: here)
    assert all(leaf.sharding == here for leaf in jax.tree.leaves(tree))


def test_a_description_that_contradicts_itself_is_refused():
    with pytest.raises(ValueError, match="1 axis names for shape"):
        ParamSpec((2, 3), ("embed",), initializers.zeros, ("a",))
    with pytest.raises(ValueError, match="2 names for shape"):
        ParamSpec((3, 4), ("layers", "embed"), initializers.zeros, ("a", "b"), stacked=True)
