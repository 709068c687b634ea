"""Settings of every test: the CPU backend, programs compiled once, numeric functions checked against their shapes."""

import os
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"

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


@pytest.fixture(scope="session")
def repo() -> Path:
    """The root of the repository."""
    return REPO
