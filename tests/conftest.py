"""Settings of every test: the CPU backend, programs compiled once, numeric functions checked against their shapes."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

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
