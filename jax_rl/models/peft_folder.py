"""Adapters as a folder that PEFT and vLLM load: adapter_config.json and adapter_model.safetensors.

Names are those of the modules that transformers makes, behind `base_model.model.`:
https://huggingface.co/docs/peft/developer_guides/checkpoint
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.typing import DTypeLike

from jax_rl.models.hf_export import Leaf
from jax_rl.models.lora import adapted_names
from jax_rl.models.params import ParamSpec, Specs
from jax_rl.models.safetensors_file import TensorToWrite, write_file
from jax_rl.models.whole_folder import whole_folder

# what peft.AutoPeftModel loads: for AutoModelForCausalLM some multimodal models are the text model alone
WRAPPER = {"base_model_class": "AutoModelForImageTextToText", "parent_library": "transformers"}


def write_adapters(
    out: Path, specs: Specs, leaves: dict[str, Any], alpha: float, base: str, multimodal: bool, dtype: DTypeLike
) -> None:
    """Writes the folder, whole or not at all.

    Args:
        out: the folder.
        specs: of the adapters (`lora.adapter_specs`), the rank with them.
        leaves: a `Leaf` for each of them.
        alpha: the adapters' output is multiplied by alpha / rank.
        base: the hub name or folder of the adapted model, as PEFT shall look for it.
        multimodal: whether transformers loads the base as a wrapper with a vision tower, which is not adapted.
        dtype: of the file.
    """
    text_model = "model.language_model." if multimodal else "model."

    def of_adapter(spec: ParamSpec, leaf: Leaf) -> list[TensorToWrite]:
        return [
            TensorToWrite.array(
                f"base_model.model.{text_model}{name}", spec.tensor_shape, np.dtype(dtype), partial(leaf.tensor, row)
            )
            for row, name in enumerate(spec.hf_names)
        ]

    tensors = jax.tree.leaves(jax.tree.map(of_adapter, specs, leaves))
    names = adapted_names(specs)
    config = {
        "peft_type": "LORA",
        "task_type": None if multimodal else "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": next(tensor.shape[0] for tensor in tensors if tensor.name.endswith("lora_A.weight")),
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        # a vision tower has a q_proj too: a list would name it, a pattern matches the whole path
        "target_modules": rf"model\.language_model\..*\.({'|'.join(names)})" if multimodal else names,
        "auto_mapping": WRAPPER if multimodal else None,
        "inference_mode": True,
    }
    with whole_folder(out) as folder:
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        write_file(folder / "adapter_model.safetensors", tensors)
