"""Between host memory and a mesh. Each process holds the whole of a host array, which is small."""

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Sharding


def to_devices(tree: Any, sharding: Sharding) -> Any:
    """Host arrays, the same in every process, as global arrays."""

    def put(array: Any) -> jax.Array:
        host = np.asarray(array)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(put, tree)


def to_host(tree: Any) -> Any:
    """Whole arrays as numpy, in every process."""

    def get(array: jax.Array) -> np.ndarray:
        if array.is_fully_addressable or array.is_fully_replicated:
            return np.asarray(array)
        return multihost_utils.process_allgather(array, tiled=True)

    return jax.tree.map(get, tree)
