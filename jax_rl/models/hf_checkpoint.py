"""Hugging Face folders, in: safetensors streamed into (sharded) arrays, each process reading only its slices."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding
from jax.typing import DTypeLike

from jax_rl.models.errors import ModelError
from jax_rl.models.hf_folder import Layout, find_layout, group_by_layer, list_tensors
from jax_rl.models.params import Params, ParamSpec, ShardingFor, held_shape, spec_leaves
from jax_rl.models.registry import Model, model_from_config, read_config
from jax_rl.models.safetensors_file import FLOAT_TYPES, StoredTensor

MAX_BUFFER_BYTES = 256 << 20  # of host memory that a shard of a stack is gathered in; a larger one goes layer by layer


@dataclass(frozen=True)
class HFCheckpoint:
    """A folder whose config and tensor list have been read and agree; no weights yet."""

    folder: Path
    model: Model
    layout: Layout
    tensors: dict[str, StoredTensor]

    def load(self, dtype: DTypeLike, sharding_for: ShardingFor | None = None) -> Params:
        """The parameters, converted to `dtype`. Host memory: one shard of the largest parameter at a time."""
        here = SingleDeviceSharding(jax.local_devices()[0])

        def leaf(spec: ParamSpec) -> jax.Array:
            stored = [self.tensors[self.layout.stored_name(name)] for name in spec.hf_names]
            return _load_array(spec, stored, spec.dtype(dtype), sharding_for(spec) if sharding_for else here)

        return jax.tree.map(leaf, self.model.specs)


def load_model(folder: Path | str, dtype: DTypeLike, sharding_for: ShardingFor | None = None) -> tuple[Model, Params]:
    """Loads a Hugging Face folder.

    Args:
        folder: holds config.json and model.safetensors, or an index and its files.
        dtype: of all parameters.
        sharding_for: the sharding of each parameter; None puts them on the first local device.

    Raises:
        ModelError: see `open_checkpoint`.
    """
    checkpoint = open_checkpoint(Path(folder))
    return checkpoint.model, checkpoint.load(dtype, sharding_for)


def open_checkpoint(folder: Path) -> HFCheckpoint:
    """Reads config and tensor list and compares them.

    Raises:
        ModelError: no such folder, no or an unknown config.json, no safetensors; or, in one message, all tensors that
            are missing, unexpected, of another shape or type, or cut off.
    """
    if not folder.is_dir():
        raise ModelError(f"there is no folder {folder}")
    model = model_from_config(read_config(folder))
    tensors, problems = list_tensors(folder)
    try:
        layout = find_layout(tensors, model.family)
    except ModelError as error:
        raise _refusal(folder, [*problems, str(error)]) from error
    model = _with_the_head_as_stored(model, layout, tensors)
    expected = {layout.stored_name(name): spec for spec in spec_leaves(model.specs) for name in spec.hf_names}
    known = expected.keys() | {layout.head}
    extra = [n for n in tensors if n not in known and not n.startswith(model.family.other_tensors)]
    problems += group_by_layer("missing", [name for name in expected if name not in tensors])
    problems += group_by_layer("unexpected", extra)
    for name, spec in expected.items():
        problems += _mismatch(name, spec, tensors[name]) if name in tensors else []
    if problems:
        raise _refusal(folder, problems)
    return HFCheckpoint(folder, model, layout, tensors)


def _refusal(folder: Path, problems: list[str]) -> ModelError:
    return ModelError(f"{folder} does not hold the model of its config.json:\n  " + "\n  ".join(problems))


def _with_the_head_as_stored(model: Model, layout: Layout, tensors: dict[str, StoredTensor]) -> Model:
    """A stored lm_head that differs from the embedding is used whatever the config says, as transformers does."""
    if not model.cfg.tie_word_embeddings or layout.head not in tensors:
        return model
    head, embed = tensors[layout.head], tensors.get(layout.stored_name("embed_tokens.weight"))
    if embed is not None and head.dtype == embed.dtype and head.shape == embed.shape:
        if all(a == b for a, b in zip(head.chunks(), embed.chunks(), strict=True)):
            return model
    return dataclasses.replace(model, cfg=dataclasses.replace(model.cfg, tie_word_embeddings=False))


def _mismatch(name: str, spec: ParamSpec, tensor: StoredTensor) -> list[str]:
    if tensor.shape != spec.tensor_shape:
        return [f"shape of {name}: {list(tensor.shape)} in the file, {list(spec.tensor_shape)} by config.json"]
    if tensor.dtype not in FLOAT_TYPES:
        return [f"type of {name}: {tensor.dtype} (quantised?), must be one of {', '.join(FLOAT_TYPES)}"]
    if tensor.end - tensor.start != spec.size // len(spec.hf_names) * FLOAT_TYPES[tensor.dtype].itemsize:
        return [f"length of {name}: {tensor.end - tensor.start} bytes do not hold {list(tensor.shape)} {tensor.dtype}"]
    return []


def _load_array(spec: ParamSpec, stored: list[StoredTensor], dtype: np.dtype, sharding: Sharding) -> jax.Array:
    held, of_layer = held_shape(spec.shape, sharding), _without_layers(sharding)
    shard_bytes = math.prod(sharding.shard_shape(held)) * dtype.itemsize
    if spec.stacked and shard_bytes > MAX_BUFFER_BYTES and of_layer is not None:
        return _load_by_layers(held, stored, dtype, sharding, of_layer)

    def read(index: Any) -> np.ndarray:  # a slice for each dimension of what is held
        out = _zeros(held, index, dtype)
        tensors, inside = (stored[index[0]], index[1:]) if spec.stacked else (stored, index)
        for row, tensor in enumerate(tensors):
            _copy(tensor, inside, out[row] if spec.stacked else out)
        return out

    return _fill(held, sharding, read)


def _load_by_layers(
    held: tuple[int, ...], stored: list[StoredTensor], dtype: np.dtype, sharding: Sharding, of_layer: Sharding
) -> jax.Array:
    """Fills the stack on the devices, where it is donated from layer to layer: the host holds one layer's shard."""
    stack = jax.jit(partial(jnp.zeros, held, dtype), out_shardings=sharding)()
    put = jax.jit(_put_layer, donate_argnums=0, out_shardings=sharding)

    def read(tensor: StoredTensor, index: Any) -> np.ndarray:
        out = _zeros(held[1:], index, dtype)
        _copy(tensor, index, out)
        return out

    for row, tensor in enumerate(stored):
        stack = jax.block_until_ready(put(stack, _fill(held[1:], of_layer, partial(read, tensor)), row))
    return stack


def _put_layer(stack: jax.Array, layer: jax.Array, row: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(stack, layer, row, 0)


def _without_layers(sharding: Sharding) -> Sharding | None:
    """The sharding of one layer of a stack; None where the layers themselves are split, or it cannot be told."""
    if isinstance(sharding, SingleDeviceSharding):
        return sharding
    if isinstance(sharding, NamedSharding) and (not sharding.spec or sharding.spec[0] is None):
        return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
    return None


def _fill(shape: tuple[int, ...], sharding: Sharding, read: Callable[[Any], np.ndarray]) -> jax.Array:
    """An array of what `read` gives for the index of each shard that is on this process's devices.

    One shard after the other: `make_array_from_callback` would have them all in host memory at once.
    """
    indices = sharding.addressable_devices_indices_map(shape)
    parts = [jax.block_until_ready(jax.device_put(read(index), device)) for device, index in indices.items()]
    return jax.make_array_from_single_device_arrays(shape, sharding, parts)


def _zeros(shape: tuple[int, ...], index: Any, dtype: np.dtype) -> np.ndarray:
    """Room for the part of an array that `index` names."""
    return np.zeros([len(range(*part.indices(n))) for part, n in zip(index, shape, strict=True)], dtype)


def _copy(tensor: StoredTensor, index: Any, out: np.ndarray) -> None:
    """Into the beginning of `out`, as far as the tensor goes."""
    values = tensor.view()[index]
    out[tuple(slice(n) for n in values.shape)] = values
