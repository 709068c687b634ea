"""Settings of every test: the CPU backend, programs compiled once, numeric functions checked against their shapes."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook
from safetensors.numpy import load_file, save_file

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
# most of the suite's time is LLVM's, on programs that run for milliseconds
FAST_COMPILE = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FAST_COMPILE}".strip()

REPO = Path(__file__).parent.parent
CHECKED = ["jax_rl.learning", "jax_rl.models", "jax_rl.rollout.sampling"]

with install_import_hook(CHECKED, "beartype.beartype"):
    import jax_rl.learning.update
    import jax_rl.models.hf_checkpoint
    import jax_rl.models.hf_export
    import jax_rl.rollout.sampling  # noqa: F401

import jax  # noqa: E402

from tests.chat_server import chat_server, reply  # noqa: E402, F401

jax.config.update("jax_compilation_cache_dir", str(REPO / ".cache" / "programs"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)

settings.register_profile("shared machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared machine")


@pytest.fixture(scope="session")
def repo() -> Path:
    """The root of the repository."""
    return REPO


@pytest.fixture(scope="session")
def small_policy(tmp_path_factory) -> Path:
    """A local and a global layer of the toy policy, the first and the last: whole runs compile three times as fast."""
    toy, folder = REPO / "configs" / "toy" / "policy", tmp_path_factory.mktemp("policy") / "small"
    shutil.copytree(toy, folder)
    config = json.loads((toy / "config.json").read_text())
    kept = {"0": "0", str(config["num_hidden_layers"] - 1): "1"}
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2, "sliding_window_pattern": 2}))
    tensors = {}
    for name, tensor in load_file(toy / "model.safetensors").items():
        layer = re.match(r"model\.layers\.(\d+)\.", name)
        if layer is None:
            tensors[name] = tensor
        elif layer[1] in kept:
            tensors[name.replace(layer[1], kept[layer[1]], 1)] = tensor
    save_file(tensors, folder / "model.safetensors")
    return folder
