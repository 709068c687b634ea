"""Chips that a plan is made for."""

from types import SimpleNamespace

import pytest

from jax_rl.planning.targets import DEFAULT_POOL, POOL_VARIABLE, _chip_by_its_memory


@pytest.mark.parametrize("share", [None, "0.9"])
def test_a_gpu_that_no_table_names_is_planned_by_its_memory(share, monkeypatch):
    """JAX calls its platform gpu, and tells of the pool that it takes."""
    monkeypatch.delenv(POOL_VARIABLE, raising=False)
    if share:
        monkeypatch.setenv(POOL_VARIABLE, share)
    pool = int(40e9 * float(share or DEFAULT_POOL))
    device = SimpleNamespace(platform="gpu", memory_stats=lambda: {"bytes_limit": pool})
    chip = _chip_by_its_memory(device, otherwise=1)
    assert chip.platform == "cuda" and chip.memory_bytes == pytest.approx(40e9)
    assert chip.usable_bytes == pytest.approx(pool)
