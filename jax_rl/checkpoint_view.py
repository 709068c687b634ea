"""Looks into a checkpoint of a run, or into a Hugging Face folder, one array at a time and without a model."""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp

from jax_rl.checkpoints import STATE, CheckpointError, is_checkpoint, read_meta
from jax_rl.models.hf_folder import list_tensors
from jax_rl.models.safetensors_file import StoredTensor

BLOCK = 1 << 20  # elements that are widened to float64 at once
HF_TYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip


@dataclass(frozen=True)
class StoredArray:
    """One array of a checkpoint. `read` brings it, whole, into memory."""

    path: str  # components joined by / (a run's checkpoint) or the tensor's name (Hugging Face)
    group: str  # params, opt_state, ...; of a Hugging Face name the part before the layer number
    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class CheckpointView:
    kind: str
    facts: dict[str, Any]  # small things to know: update, data position, ...
    config: Any  # the run's configuration, or config.json
    arrays: tuple[StoredArray, ...]


@dataclass(frozen=True)
class Change:
    """From one array to another: L2 norms, in float64."""

    difference: float
    before: float

    @property
    def relative(self) -> float:
        """norm(after - before) / norm(before); infinite where something came from nothing."""
        if self.before == 0:
            return 0.0 if self.difference == 0 else math.inf
        return self.difference / self.before


def open_view(folder: Path) -> CheckpointView:
    """Reads the description of a folder and none of its arrays.

    Raises:
        CheckpointError: neither a checkpoint of a run nor a Hugging Face folder, or damaged.
    """
    if (folder / "config.json").is_file() and not is_checkpoint(folder):
        return _open_hugging_face(folder)
    return _open_run(folder)


def norm(array: np.ndarray) -> float:
    """L2 norm over all elements, in float64, without a wide copy of the whole."""
    return math.sqrt(sum(float(np.dot(block, block)) for block in _wide_blocks(array)))


def count_nonfinite(array: np.ndarray) -> int:
    return sum(int(np.count_nonzero(~np.isfinite(block))) for block in _wide_blocks(array))


def change(before: np.ndarray, after: np.ndarray) -> Change:
    """What moved between two arrays of one shape."""
    blocks = zip(_wide_blocks(before), _wide_blocks(after), strict=True)
    squares = [(float(np.dot(b - a, b - a)), float(np.dot(a, a))) for a, b in blocks]
    return Change(math.sqrt(sum(d for d, _ in squares)), math.sqrt(sum(b for _, b in squares)))


def _wide_blocks(array: np.ndarray) -> Iterator[np.ndarray]:
    flat = array.reshape(-1)
    for start in range(0, flat.size, BLOCK):
        yield flat[start : start + BLOCK].astype(np.float64)


def _open_run(folder: Path) -> CheckpointView:
    meta = read_meta(folder)
    state = (folder / STATE).absolute()
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            description = checkpointer.metadata(state).item_metadata
    except (ValueError, KeyError, OSError) as error:
        raise CheckpointError(f"{state} is damaged: {_first_line(error)}") from error
    if description is None:
        raise CheckpointError(f"{state} is damaged: Orbax finds no description of its arrays; files may be missing")
    tree = description.tree
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_leaf)
    arrays = []
    for index, (keys, leaf) in enumerate(leaves):
        if not hasattr(leaf, "shape"):  # an empty branch, such as the state of an optax transformation that has none
            continue
        names = [str(getattr(key, "key", getattr(key, "idx", key))) for key in keys]
        read = _reader(state, structure, len(leaves), index)
        arrays.append(StoredArray("/".join(names), names[0], tuple(leaf.shape), np.dtype(leaf.dtype), read))
    facts = {name: value for name, value in meta.items() if name != "config"}
    return CheckpointView("checkpoint of a run", facts, meta.get("config"), tuple(arrays))


def _is_leaf(node: Any) -> bool:
    return not isinstance(node, dict | list | tuple)


def _reader(state: Path, structure: Any, leaves: int, index: int) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        """Restores this leaf alone, to the host, however it was sharded when it was saved."""
        item = structure.unflatten([0 if i == index else ocp.PLACEHOLDER for i in range(leaves)])
        how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item, is_leaf=_is_leaf)
        try:
            with ocp.PyTreeCheckpointer() as checkpointer:
                tree = checkpointer.restore(state, args=ocp.args.PyTreeRestore(item=item, restore_args=how))
        except (ValueError, KeyError, OSError) as error:
            raise CheckpointError(f"{state} is damaged: {_first_line(error)}") from error
        return np.asarray(structure.flatten_up_to(tree)[index])

    return read


def _open_hugging_face(folder: Path) -> CheckpointView:
    tensors, problems = list_tensors(folder)
    if problems:
        raise CheckpointError(f"{folder} is damaged:\n  " + "\n  ".join(problems))
    unknown = sorted({tensor.dtype for tensor in tensors.values()} - set(HF_TYPES))
    if unknown:
        raise CheckpointError(f"{folder} holds tensors of types that are not known here: {', '.join(unknown)}")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{folder / 'config.json'} cannot be read: {error}") from error
    arrays = tuple(_mapped(name, tensor) for name, tensor in sorted(tensors.items()))
    return CheckpointView("Hugging Face folder", {}, config, arrays)


def _mapped(name: str, tensor: StoredTensor) -> StoredArray:
    dtype = np.dtype(getattr(ml_dtypes, HF_TYPES[tensor.dtype], HF_TYPES[tensor.dtype]))

    def read() -> np.ndarray:
        if tensor.start == tensor.end:  # what cannot be mapped
            return np.zeros(tensor.shape, dtype)
        raw = np.memmap(tensor.path, np.uint8, "r", offset=tensor.start, shape=(tensor.end - tensor.start,))
        return raw.view(dtype).reshape(tensor.shape)

    parts = name.split(".")
    number = next((i for i, part in enumerate(parts) if part.isdigit()), len(parts) - 1)
    return StoredArray(name, ".".join(parts[:number]) or name, tensor.shape, dtype, read)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
