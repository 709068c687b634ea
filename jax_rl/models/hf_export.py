"""Hugging Face folders, out: what transformers loads, with the names of the checkpoint that training started from, its
tokenizer, and whatever else it held.
"""

import copy
import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.typing import DTypeLike

from jax_rl.models.errors import ModelError
from jax_rl.models.hf_folder import Layout, find_layout, has_weights, list_tensors
from jax_rl.models.lora import Adapted
from jax_rl.models.params import Params, ParamSpec, real_part, spec_leaves
from jax_rl.models.registry import Model, read_config
from jax_rl.models.safetensors_file import FLOAT_TYPES, StoredTensor, TensorToWrite, write_files
from jax_rl.models.whole_folder import whole_folder

MAX_FILE_BYTES = 5 << 30  # of an exported safetensors file, as transformers has it
COMPANIONS = ("*.json", "*.jinja", "*.model", "*.txt")  # config, tokenizer, chat template, generation settings
TOKENIZER_FILES = ("*token*", "chat_template*", "*.model", "vocab.*", "merges.txt")  # of these


@dataclass(frozen=True)
class Leaf:
    """A parameter to be written, wherever it lies."""

    dtype: np.dtype  # that it is held in
    tensor: Callable[[int], np.ndarray]  # number in the spec's hf_names -> that tensor, fetched when its turn comes


def save_model(
    out: Path | str,
    model: Model,
    params: Params,
    source: Path | str | None = None,
    *,
    tokenizer: Path | None = None,
    to_host: Callable[[jax.Array], np.ndarray] = np.asarray,
    write: bool = True,
) -> None:
    """Writes a Hugging Face folder, whole or not at all; a folder already at `out` is replaced.

    Args:
        out: the folder.
        model, params: what to write, in the parameters' own dtype; adapters are merged.
        source: the checkpoint that training started from. Tensor names, config, tokenizer, and the tensors that are not
            the text model's (a vision tower) come from it. None: `out` itself, which holds a config.json.
        tokenizer: the folder of the tokenizer, its chat template and its stop ids, if that is another.
        to_host, write: of arrays that lie on several hosts: all of these call this with a `to_host` that gathers an
            array on each, and one of them writes.

    Raises:
        ModelError: `source` is damaged, or cannot give what its config.json promises.
    """
    leaves = jax.tree.map(partial(_leaf_of_array, to_host), model.specs, params)
    if not write:
        for spec, leaf in zip(spec_leaves(model.specs), jax.tree.leaves(leaves), strict=True):
            for row in range(len(spec.hf_names)):
                leaf.tensor(row)
        return
    write_model(out, model, leaves, out if source is None else source, params["embed"].dtype, tokenizer)


def _leaf_of_array(to_host: Callable[[jax.Array], np.ndarray], spec: ParamSpec, held: jax.Array | Adapted) -> Leaf:
    def tensor(row: int) -> np.ndarray:
        one = held[row] if spec.stacked else held
        return to_host(one.merged() if isinstance(one, Adapted) else real_part(one, spec.tensor_shape))

    return Leaf(np.dtype(held.dtype), tensor)


def write_model(
    out: Path | str,
    model: Model,
    leaves: dict[str, Any],
    source: Path | str,
    dtype: DTypeLike,
    tokenizer: Path | None = None,
) -> None:
    """`save_model` of parameters that may lie anywhere; in host memory is one tensor of the file at a time.

    Args:
        leaves: a `Leaf` for each of the model's specs.
        dtype: of the file, but for tensors that `source` stores in another type than most: they keep theirs.
    """
    out, source = Path(out), Path(source)
    raw = read_config(source)
    tensors = _tensors_to_write(model, leaves, source, raw, np.dtype(dtype))
    with whole_folder(out) as folder:
        for file in _companions(source, tokenizer):
            shutil.copyfile(file, folder / file.name)
        config = _exported_config(raw, model, np.dtype(dtype))
        (folder / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        write_files(folder, tensors, MAX_FILE_BYTES)


def _companions(source: Path, tokenizer: Path | None) -> list[Path]:
    """What lies beside the weights. A tokenizer of another folder comes with all of its files and none of the source's,
    and with that folder's generation settings, which hold its stop ids.
    """

    def beside(folder: Path) -> dict[str, Path]:
        files = {file.name: file for pattern in COMPANIONS for file in folder.glob(pattern)}
        return {n: f for n, f in files.items() if n != "config.json" and not n.endswith(".index.json")}

    own = beside(source)
    if tokenizer is None or tokenizer.resolve() == source.resolve():
        return list(own.values())

    def is_tokenizers(name: str) -> bool:
        return any(fnmatch(name, pattern) for pattern in TOKENIZER_FILES)

    kept = {name: file for name, file in own.items() if not is_tokenizers(name)}
    other = {n: f for n, f in beside(tokenizer).items() if is_tokenizers(n) or n == "generation_config.json"}
    return list((kept | other).values())


def _tensors_to_write(
    model: Model, leaves: dict[str, Any], source: Path, raw: dict[str, Any], dtype: np.dtype
) -> list[TensorToWrite]:
    layout, stored = Layout(), dict[str, StoredTensor]()
    if has_weights(source):
        stored, problems = list_tensors(source)
        if problems:
            raise ModelError(f"cannot export beside {source}, which is damaged:\n  " + "\n  ".join(problems))
        layout = find_layout(stored, model.family)
    elif "text_config" in raw:
        raise ModelError(f"{source} describes a multimodal model but holds no weights to copy its vision tower from")
    others = {name: t for name, t in stored.items() if name.startswith(model.family.other_tensors)}
    usual = _usual_type([tensor for name, tensor in stored.items() if name not in others])

    def dtype_in_file(name: str, spec: ParamSpec) -> np.dtype:
        if name not in stored:
            return spec.dtype(dtype)
        own = stored[name].dtype
        if spec.wide:
            return np.promote_types(FLOAT_TYPES[own], dtype)
        return dtype if own == usual else FLOAT_TYPES[own]

    def of_parameter(spec: ParamSpec, leaf: Leaf) -> list[TensorToWrite]:
        def write(row: int, hf_name: str) -> TensorToWrite:
            name = layout.stored_name(hf_name)
            in_file = dtype_in_file(name, spec)
            return TensorToWrite.array(name, spec.tensor_shape, in_file, partial(leaf.tensor, row))

        return [write(row, name) for row, name in enumerate(spec.hf_names)]

    copies = [TensorToWrite.copy(name, tensor) for name, tensor in others.items()]
    return copies + jax.tree.leaves(jax.tree.map(of_parameter, model.specs, leaves))


def _usual_type(tensors: Iterable[StoredTensor]) -> str | None:
    """The type of most bytes."""
    sizes: dict[str, int] = {}
    for tensor in tensors:
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.end - tensor.start
    return max(sizes, key=sizes.__getitem__, default=None)


def _exported_config(raw: dict[str, Any], model: Model, dtype: np.dtype) -> dict[str, Any]:
    """The source's config, with the dtype and the tying of what is really written."""
    config = copy.deepcopy(raw)
    for part in (config, config.get("text_config", {})):
        part.update({name: dtype.name for name in ("dtype", "torch_dtype") if name in part})
        if part.get("tie_word_embeddings", part is config) and not model.cfg.tie_word_embeddings:
            part["tie_word_embeddings"] = False
    return config
