"""Hugging Face folders in: safetensors streamed into (sharded) arrays, each process reading only its slices."""

import dataclasses
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding
from jax.typing import DTypeLike

from jax_rl.models.errors import ModelError
from jax_rl.models.params import Params, ParamSpec, ShardingFor, spec_leaves
from jax_rl.models.registry import Family, Model, model_from_config, read_config
from jax_rl.models.safetensors_file import FLOAT_TYPES, StoredTensor, read_header

HEAD = "lm_head.weight"
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Layout:
    """How a checkpoint names the text model's tensors.

    Text-only files say `model.layers.0...`, multimodal ones `language_model.model.layers.0...` or
    `model.language_model.layers.0...`, depending on the version that wrote them.
    """

    prefix: str = "model."
    head: str = HEAD

    def stored_name(self, hf_name: str) -> str:
        """The name in the file of a tensor of a `ParamSpec`."""
        return self.head if hf_name == HEAD else self.prefix + hf_name


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
            return _load_array(spec, stored, np.dtype(jnp.dtype(dtype)), sharding_for(spec) if sharding_for else here)

        return jax.tree.map(leaf, self.model.specs)

    def other_tensors(self) -> dict[str, StoredTensor]:
        """What is not the text model's: a vision tower, ..."""
        return {name: t for name, t in self.tensors.items() if name.startswith(self.model.family.other_tensors)}


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
    layout = find_layout(tensors, model.family)
    model = _with_the_head_as_stored(model, layout, tensors)
    expected = {layout.stored_name(name): spec for spec in spec_leaves(model.specs) for name in spec.hf_names}
    known = expected.keys() | {layout.head}
    extra = [n for n in tensors if n not in known and not n.startswith(model.family.other_tensors)]
    problems += _group("missing", [name for name in expected if name not in tensors])
    problems += _group("unexpected", extra)
    for name, spec in expected.items():
        problems += _mismatch(name, spec, tensors[name]) if name in tensors else []
    if problems:
        raise ModelError(f"{folder} does not hold the model of its config.json:\n  " + "\n  ".join(problems))
    return HFCheckpoint(folder, model, layout, tensors)


def list_tensors(folder: Path) -> tuple[dict[str, StoredTensor], list[str]]:
    """All tensors of a folder, and what is wrong with its files.

    Raises:
        ModelError: there are no safetensors files at all.
    """
    index, single = folder / INDEX, folder / "model.safetensors"
    if index.is_file():
        paths = [folder / name for name in _indexed_files(index)]
    elif single.is_file():
        paths = [single]
    else:
        found = ", ".join(
            sorted(p.name for p in folder.glob("*") if p.suffix in (".safetensors", ".bin", ".pt", ".gguf"))
        )
        raise ModelError(f"{folder} has neither model.safetensors nor {INDEX} (weights found: {found or 'none'})")
    tensors: dict[str, StoredTensor] = {}
    problems = []
    for path in paths:
        try:
            in_file = read_header(path)
        except (ModelError, OSError) as error:
            problems.append(f"unreadable file: {error}")
            continue
        size = path.stat().st_size
        problems += _group(
            f"cut off ({path.name} ends at byte {size})", [n for n, t in in_file.items() if t.end > size]
        )
        problems += _group(f"twice (again in {path.name})", [name for name in in_file if name in tensors])
        tensors.update(in_file)
    return tensors, problems


def _indexed_files(index: Path) -> list[str]:
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{index} is not a safetensors index: {error!r}") from error


def find_layout(tensors: Iterable[str], family: Family) -> Layout:
    """Where the text model's tensors are.

    Raises:
        ModelError: nowhere, or at more than one place.
    """
    names = [name for name in tensors if not name.startswith(family.other_tensors)]
    matches = (re.match(r"(.*?)(embed_tokens\.weight$|layers\.\d+\.)", name) for name in names)
    prefixes = sorted({match[1] for match in matches if match})
    if len(prefixes) != 1:
        raise ModelError(
            f"cannot tell where the text model is: the prefixes of its tensors are {prefixes}, should be one, "
            "such as 'model.' or 'language_model.model.'"
        )
    heads = [name for name in names if name.endswith(HEAD)]
    default = "language_model." + HEAD if prefixes[0].startswith("language_model.") else HEAD
    return Layout(prefixes[0], heads[0] if len(heads) == 1 else default)


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


def _group(what: str, names: list[str]) -> list[str]:
    """One line per kind of tensor: `missing: model.layers.{3,4}.mlp.up_proj.weight`."""
    layers: dict[str, list[str]] = {}
    for name in names:
        match = re.search(r"\blayers\.(\d+)\.", name)
        pattern = name if match is None else f"{name[: match.start(1)]}{{}}{name[match.end(1) :]}"
        layers.setdefault(pattern, []).append("" if match is None else match[1])
    return [
        f"{what}: " + pattern.replace("{}", found[0] if len(found) == 1 else "{" + ",".join(found) + "}")
        for pattern, found in layers.items()
    ]


def _load_array(
    spec: ParamSpec, stored: list[StoredTensor], dtype: np.dtype, sharding: jax.sharding.Sharding
) -> jax.Array:
    def read(index: tuple[slice, ...]) -> np.ndarray:
        if not spec.stacked:
            return np.array(stored[0].view()[index], dtype)
        rows = stored[index[0]]
        shape = [len(range(*part.indices(n))) for part, n in zip(index, spec.shape, strict=True)]
        out = np.empty(shape, dtype)
        for row, tensor in enumerate(rows):
            out[row] = tensor.view()[index[1:]]
        return out

    return jax.make_array_from_callback(spec.shape, sharding, read)
