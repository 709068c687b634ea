"""Device names and ids: what is there is used, what is not is named."""

import subprocess
import sys

import jax
import pytest

from jax_rl.config.schema import Config, MiscConfig, ModelConfig
from jax_rl.parallel.devices import local_devices, place_models
from jax_rl.parallel.seats import DeviceError, Seats

NO_GPUS = Seats((), (), {})


@pytest.mark.parametrize("name", ["auto", "cpu", "cpu:0"])
def test_the_cpu_is_found(name):
    assert local_devices(name) == (jax.local_devices()[0],)


@pytest.mark.parametrize("name", ["cuda", "tpu", "cuda:1", "cpu:7"])
def test_what_is_not_there_is_an_error_that_lists_what_is(name):
    with pytest.raises(DeviceError, match=rf"misc.device is '{name}', but JAX finds only 1 x cpu"):
        local_devices(name)


def test_a_device_name_must_be_one():
    with pytest.raises(DeviceError, match="must be auto, cpu, cuda, cuda:N or tpu"):
        local_devices("gpu0")


def test_an_id_that_is_not_there_is_named():
    cfg = Config(model=ModelConfig(policy_gpu_ids=(0, 3)), misc=MiscConfig(device="cpu"))
    with pytest.raises(DeviceError, match=r"model.policy_gpu_ids names \[3\], but there are 1 devices"):
        place_models(cfg, NO_GPUS)


def test_ids_pick_devices_and_the_reference_shares_by_default():
    code = """
import jax; jax.config.update("jax_platforms", "cpu"); jax.config.update("jax_num_cpu_devices", 4)
from jax_rl.config.schema import Config, MiscConfig, ModelConfig
from jax_rl.parallel.devices import place_models
from jax_rl.parallel.seats import Seats
def place(**model):
    found = place_models(Config(model=ModelConfig(**model), misc=MiscConfig(device="cpu")), Seats((), (), {}))
    return [d.id for d in found.policy], [d.id for d in found.reference]
assert place(policy_gpu_ids=(2,), reference_gpu_ids=(1,)) == ([2], [1])
assert place(policy_gpu_ids=(3, 0)) == ([3, 0], [3, 0])
assert place() == ([0, 1, 2, 3], [0, 1, 2, 3])
assert place(reference_gpu_ids=(0,)) == ([1, 2, 3], [0])
assert place(reference_device="cpu:0") == ([1, 2, 3], [0])
"""
    subprocess.run([sys.executable, "-c", code], check=True)
