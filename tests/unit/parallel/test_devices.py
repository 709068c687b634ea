"""Device names and ids: what is there is used, what is not is named."""

import subprocess
import sys

import jax
import pytest

from jax_rl.parallel.devices import DeviceError, local_devices, place_models


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
    with pytest.raises(DeviceError, match=r"model.policy_gpu_ids names \[3\], but there are 1 devices"):
        place_models("cpu", [0, 3], [])


def test_ids_pick_devices_and_the_reference_shares_by_default():
    code = """
import jax; jax.config.update("jax_platforms", "cpu"); jax.config.update("jax_num_cpu_devices", 4)
from jax_rl.parallel.devices import place_models
ids = lambda devices: [d.id for d in devices]
split, shared, plain = place_models("cpu", [2], [1]), place_models("cpu", [3], []), place_models("cpu", [], [])
assert (ids(split.policy), ids(split.reference)) == ([2], [1])
assert (ids(shared.policy), ids(shared.reference)) == ([3], [3])
beside = place_models("cpu", [], [0]), place_models("cpu", [], [], "cpu:0")
assert all((ids(p.policy), ids(p.reference)) == ([1], [0]) for p in beside)
assert (ids(plain.policy), ids(plain.reference)) == ([0], [0])
"""
    subprocess.run([sys.executable, "-c", code], check=True)
