"""From a checkpoint of a run to a Hugging Face or PEFT folder, one parameter in memory at a time."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jax_rl.checkpoint_view import StoredArray, open_view
from jax_rl.checkpoints import CheckpointError, is_checkpoint, leaf_name, read_meta
from jax_rl.errors import UserError
from jax_rl.models.errors import ModelError
from jax_rl.models.hf_checkpoint import HFCheckpoint, open_checkpoint
from jax_rl.models.hf_export import Leaf, write_model
from jax_rl.models.hub import resolve_model_folder
from jax_rl.models.lora import Adapted, adapter_specs
from jax_rl.models.params import ParamSpec, Specs, held_shape, real_part
from jax_rl.models.peft_folder import write_adapters
from jax_rl.models.registry import read_config
from jax_rl.parallel.sharding import Layout, layout_of_sizes


def export_checkpoint(
    checkpoint: Path,
    out: Path,
    *,
    adapter: bool = False,
    dtype: str | None = None,
    base: str | None = None,
    tokenizer: str | None = None,
) -> None:
    """Writes `out`, whole or not at all.

    Args:
        checkpoint: a checkpoint-N or resume_latest folder.
        out: a new folder.
        adapter: write the adapters as a PEFT folder instead of merging them into the weights.
        dtype: of the written tensors; None = what the run held them in.
        base: the model that the run started from; None = where its configuration says.
        tokenizer: the folder or hub name of the tokenizer that the run used; None likewise.

    Raises:
        UserError: `checkpoint`, `base` or `out` is not what it must be, or there are no adapters.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--to {out} exists and is not empty; name a new folder, nothing is written over")
    if not is_checkpoint(checkpoint) and (checkpoint / "config.json").is_file():
        raise CheckpointError(f"{checkpoint} is a Hugging Face folder already; name a checkpoint-N or resume_latest")
    run = _open_run(checkpoint, base)
    if adapter:
        if run.adapters is None:
            raise UserError(f"{checkpoint} holds no adapters: its run had model.lora.enabled false; drop --adapter")
        multimodal = "text_config" in read_config(run.base.folder)
        leaves = jax.tree_util.tree_map_with_path(run.trained_leaf, run.adapters)
        write_adapters(out, run.adapters, leaves, run.alpha, base or run.base_name, multimodal, dtype or "float32")
        return
    name = tokenizer or run.tokenizer_name
    try:
        tokenizer_folder = None if name is None else run.resolve(name)
    except ModelError as error:
        raise UserError(f"the tokenizer that the run used: {error}; name another place with --tokenizer") from error
    leaves = jax.tree_util.tree_map_with_path(run.policy_leaf, run.base.model.specs)
    write_model(out, run.base.model, leaves, run.base.folder, dtype or leaves["embed"].dtype, tokenizer_folder)


@dataclass(frozen=True)
class _Run:
    """What a checkpoint holds, and the model that its run started from."""

    base: HFCheckpoint
    base_name: str
    tokenizer_name: str | None  # folder or hub name, if it is not the base's
    resolve: Callable[[str], Path]  # such a name -> a local folder
    dtype: np.dtype  # of the run's frozen weights
    adapters: Specs | None  # under LoRA
    alpha: float
    scale: float
    fetch: Callable[..., list[np.ndarray]]  # whole trained arrays by name, such as "blocks/0/mlp/up_proj"
    arrays: dict[str, StoredArray]

    def policy_leaf(self, path: tuple[Any, ...], spec: ParamSpec) -> Leaf:
        """One of the model's parameters: trained, or of the base, with its adapter merged if it has one."""
        name = leaf_name(path)
        if self.adapters is None:
            return self.trained_leaf(path, spec)
        stored = [self.base.tensors[self.base.layout.stored_name(hf_name)] for hf_name in spec.hf_names]
        dtype = spec.dtype(self.dtype)
        adapted = f"{name}/a" in self.arrays

        def tensor(row: int) -> np.ndarray:
            weight = np.array(stored[row].view(), dtype)
            if not adapted:
                return weight
            a, b = (pair[row] if spec.stacked else pair for pair in self.fetch(f"{name}/a", f"{name}/b"))
            return np.asarray(Adapted(weight, a, b, np.float32(self.scale)).merged())

        return Leaf(dtype, tensor)

    def trained_leaf(self, path: tuple[Any, ...], spec: ParamSpec) -> Leaf:
        """One of the arrays that were trained."""
        name = leaf_name(path)

        def tensor(row: int) -> np.ndarray:
            (array,) = self.fetch(name)
            return real_part(array[row] if spec.stacked else array, spec.tensor_shape)

        return Leaf(self.arrays[name].dtype, tensor)


def _open_run(checkpoint: Path, base: str | None) -> _Run:
    view = open_view(checkpoint)
    arrays = {a.path.removeprefix("params/"): a for a in view.arrays if a.path.startswith("params/")}
    model, misc = view.config["model"], view.config["misc"]
    name = model["policy_name_or_path"]
    token = os.environ.get(misc["huggingface_token_env"])
    resolve = partial(resolve_model_folder, cache_dir=misc["huggingface_cache_dir"], token=token)
    source = open_checkpoint(resolve(base or name))
    tokenizer = model.get("tokenizer_name_or_path")
    if tokenizer == name:
        tokenizer = None  # it follows `base`
    lora = model.get("lora", {"enabled": False, "alpha": 1.0, "rank": 1})
    adapters = None
    if lora["enabled"]:
        adapters = adapter_specs(source.model.specs, lora["rank"], tuple(lora["target_modules"]))
    layout = layout_of_sizes(read_meta(checkpoint)["mesh"])
    _compare(checkpoint, arrays, source.model.specs if adapters is None else adapters, source.folder, layout)
    scale = lora["alpha"] / lora["rank"]
    return _Run(
        source,
        name,
        tokenizer,
        resolve,
        jax.numpy.dtype(misc["dtype"]),
        adapters,
        lora["alpha"],
        scale,
        _keep_last(arrays),
        arrays,
    )


def _compare(checkpoint: Path, arrays: dict[str, StoredArray], specs: Specs, base: Path, layout: Layout) -> None:
    expected = {
        leaf_name(path): held_shape(spec.shape, layout.sharding_for(spec))
        for path, spec in jax.tree_util.tree_leaves_with_path(specs)
    }
    problems = [f"missing: {name}" for name in expected if name not in arrays]
    problems += [f"unexpected: {name}" for name in arrays if name not in expected]
    problems += [
        f"shape of {name}: {list(arrays[name].shape)} in the checkpoint, {list(shape)} by the model"
        for name, shape in expected.items()
        if name in arrays and arrays[name].shape != shape
    ]
    if problems:
        raise CheckpointError(f"{checkpoint} does not fit the model in {base}:\n  " + "\n  ".join(problems))


def _keep_last(arrays: dict[str, StoredArray]) -> Callable[..., list[np.ndarray]]:
    """Reads whole arrays by name and keeps what was read last: the tensors of a stack are asked for one by one."""
    held: dict[tuple[str, ...], list[np.ndarray]] = {}

    def fetch(*names: str) -> list[np.ndarray]:
        if names not in held:
            held.clear()
            held[names] = [arrays[name].read() for name in names]
        return held[names]

    return fetch
