"""Reading and writing safetensors files by byte range, so that no tensor need be whole in memory.

Format: 8 bytes little-endian header length, a JSON header {name: {dtype, shape, data_offsets}}, the data.
https://huggingface.co/docs/safetensors
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

from jax_rl.models.errors import ModelError

FLOAT_TYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_MAX_HEADER = 100_000_000  # the format's own limit


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies: `path[start:end]`, row-major."""

    path: Path
    dtype: str  # safetensors' name: F32, BF16, ...
    shape: tuple[int, ...]
    start: int
    end: int

    def view(self) -> np.ndarray:
        """Maps it without reading it. Only for the types in FLOAT_TYPES. Drop the view soon: so do its pages."""
        raw = np.memmap(self.path, np.uint8, "r", offset=self.start, shape=(self.end - self.start,))
        return raw.view(FLOAT_TYPES[self.dtype]).reshape(self.shape)

    def chunks(self, size: int = 1 << 24) -> Iterator[bytes]:
        """Its bytes, piece by piece."""
        with self.path.open("rb") as file:
            file.seek(self.start)
            for offset in range(self.start, self.end, size):
                yield file.read(min(size, self.end - offset))


def read_header(path: Path) -> dict[str, StoredTensor]:
    """What a file holds.

    Raises:
        ModelError: not a safetensors file, or cut off inside the header.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(_MAX_HEADER, size - 8):
            raise ModelError(f"{path} is no whole safetensors file: {size} bytes, header length {length}")
        text = file.read(length)
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        return {name: _stored(path, 8 + length, entry) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path} has a broken safetensors header: {error!r}") from error


def _stored(path: Path, base: int, entry: dict) -> StoredTensor:
    start, end = entry["data_offsets"]
    return StoredTensor(path, entry["dtype"], tuple(entry["shape"]), base + start, base + end)


@dataclass(frozen=True)
class TensorToWrite:
    """`data()` yields the tensor's bytes, called when their turn comes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    data: Callable[[], Iterator[bytes | memoryview]]

    @classmethod
    def copy(cls, name: str, tensor: StoredTensor) -> "TensorToWrite":
        """The same bytes as in another file."""
        return cls(name, tensor.dtype, tensor.shape, tensor.end - tensor.start, tensor.chunks)

    @classmethod
    def array(
        cls, name: str, shape: tuple[int, ...], dtype: np.dtype, fetch: Callable[[], np.ndarray]
    ) -> "TensorToWrite":
        """An array that `fetch` brings to the host, converted to `dtype`."""
        names = {value: key for key, value in FLOAT_TYPES.items()}

        def data() -> Iterator[memoryview]:
            yield np.ascontiguousarray(fetch(), dtype).reshape(-1).view(np.uint8).data

        return cls(name, names[np.dtype(dtype)], shape, math.prod(shape) * dtype.itemsize, data)


def write_files(folder: Path, tensors: Sequence[TensorToWrite], max_bytes: int) -> None:
    """Writes `model.safetensors`, or an index and numbered files of at most `max_bytes` (or one tensor) each."""
    groups: list[list[TensorToWrite]] = [[]]
    for tensor in tensors:
        if groups[-1] and sum(t.nbytes for t in groups[-1]) + tensor.nbytes > max_bytes:
            groups.append([])
        groups[-1].append(tensor)
    if len(groups) == 1:
        write_file(folder / "model.safetensors", groups[0])
        return
    weight_map = {}
    for number, group in enumerate(groups, start=1):
        name = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        write_file(folder / name, group)
        weight_map.update({tensor.name: name for tensor in group})
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors)}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def write_file(path: Path, tensors: Sequence[TensorToWrite]) -> None:
    """One safetensors file; in memory is one tensor at a time."""
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}  # transformers refuses files that do not say so
    offset = 0
    for tensor in tensors:
        end = offset + tensor.nbytes
        header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for tensor in tensors:
            for piece in tensor.data():
                file.write(piece)
                del piece  # else it would be held while the next one is fetched
        if file.tell() != 8 + len(text) + offset:
            raise ModelError(f"{path}: wrote {file.tell()} bytes, expected {8 + len(text) + offset}")
