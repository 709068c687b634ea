"""Who gets which GPU, on machines that are only described."""

import os

import pytest

from jax_rl.config.schema import Config, MetricXConfig, MiscConfig, ModelConfig, RewardConfig, XCometConfig
from jax_rl.parallel import seats
from jax_rl.parallel.seats import DeviceError, assign, claim, given_gpus


def config(metricx="cuda", xcomet="cuda", device="auto", **model) -> Config:
    reward = RewardConfig(metricx=MetricXConfig(device=metricx), xcomet=XCometConfig(device=xcomet))
    return Config(model=ModelConfig(**model), reward=reward, misc=MiscConfig(device=device))


SIX = {"policy_gpu_ids": (0, 1, 2, 3, 4, 5), "reference_gpu_ids": (6,)}


@pytest.mark.parametrize(
    ("cfg", "gpus", "policy", "reference", "metricx", "xcomet", "shared"),
    [
        (config(), 4, (0,), (), "cuda:1", "cuda:2", []),
        (config(), 2, (0,), (), "cuda:1", "cuda:1", ["xcomet shares cuda:1 with metricx"]),
        (config(), 1, (0,), (), "cuda:0", "cuda:0", ["with the policy", "with metricx and the policy"]),
        (config(**SIX), 8, SIX["policy_gpu_ids"], (6,), "cuda:7", "cuda:7", ["xcomet shares cuda:7 with metricx"]),
        (config("cuda:7", "cuda:7", **SIX), 8, SIX["policy_gpu_ids"], (6,), "cuda:7", "cuda:7", []),
        (config("cuda:0", "cpu"), 2, (1,), (), "cuda:0", "cpu", []),
        (config(device="cuda:1"), 3, (1,), (), "cuda:0", "cuda:2", []),
        (config(device="cpu"), 2, (), (), "cuda:0", "cuda:1", []),
        (config(device="cpu"), 0, (), (), "cuda", "cuda", []),
    ],
)
def test_assignment(cfg, gpus, policy, reference, metricx, xcomet, shared):
    found = assign(cfg, gpus, trains_on_gpus=cfg.misc.device != "cpu")
    assert (found.policy, found.reference) == (policy, reference)
    assert found.metrics == {"metricx": metricx, "xcomet": xcomet}
    assert len(found.notes) == len(shared)
    assert all(words in note for words, note in zip(shared, found.notes, strict=True))


def test_a_number_that_is_not_there_is_named():
    with pytest.raises(DeviceError, match=r"model.policy_gpu_ids names 8, but there are 8 GPUs, numbered 0 to 7"):
        assign(config(policy_gpu_ids=(0, 8)), 8, trains_on_gpus=True)
    with pytest.raises(DeviceError, match=r"reward.xcomet.device names 3, but there are 2 GPUs"):
        assign(config(xcomet="cuda:3"), 2, trains_on_gpus=True)


def test_the_trainer_keeps_its_own_gpus_of_those_that_it_was_given(monkeypatch):
    monkeypatch.setattr(seats, "_narrowed", {})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,GPU-abc,7")
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    cfg = config(device="cuda", policy_gpu_ids=(1, 2))
    for _ in range(2):  # a second run in the same process counts the same GPUs
        found = claim(cfg)
        assert found.metrics == {"metricx": "cuda:0", "xcomet": "cuda:3"}
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "5,GPU-abc"
        assert given_gpus() == "4,5,GPU-abc,7"
