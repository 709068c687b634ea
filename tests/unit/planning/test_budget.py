"""What lives together and what is advised, on programs whose sizes are made up."""

from dataclasses import replace

import pytest

from jax_rl.config.schema import Config, ModelConfig, RLConfig
from jax_rl.planning.budget import GIB, Residents, advise, least_seconds, least_update_seconds, phases
from jax_rl.planning.compiled import Program
from jax_rl.planning.programs import Work
from jax_rl.planning.targets import Chip

WORK = Work(prompts=8, rows=64, batches=1, group=8, prompt_len=64, new_tokens=64, step_rows=64, micro_rows=16, steps=1)
RESIDENTS = Residents(state=20 * GIB, frozen=0, reference=5 * GIB, rollout_copy=10 * GIB)
CFG = Config(model=ModelConfig(policy_name_or_path="x"), rl=RLConfig(micro_batch_size=16, batch_size=8))
ROWS = {"policy": 4, "reference": 4}


def program(name, temporaries, **parts):
    sizes = {part: n * GIB for part, n in parts.items()}
    peak = sum(n for part, n in sizes.items() if part != "gradients") + temporaries * GIB
    return Program(name, 4, sizes, peak, 10**15, {}, 1.0, 1)


@pytest.fixture
def programs():
    made = [
        program("prefill", 1, parameters=10, kv_cache=2),
        program("decode", 1, parameters=10, kv_cache=4),
        program("reference", 2, parameters=5),
        program("train", 16, parameters=5, optimizer=15, gradients=6),  # gradients are among the 16
    ]
    return {p.name: p for p in made}


def gib(found):
    return {phase.name: (phase.fixed / GIB, phase.varying / GIB) for phase in found}


def test_generation_holds_the_state_the_reference_and_the_second_copy(programs):
    assert gib(phases(programs, RESIDENTS, shared_reference=True)) == {
        "prefill": (35, 3),
        "decode": (35, 5),
        "reference": (35, 2),
        "train": (25 + 6, 10),
    }


def test_a_reference_on_devices_of_its_own_is_alone_there(programs):
    found = phases(programs, replace(RESIDENTS, reference=0), shared_reference=False)
    assert gib(found)["reference"] == (5, 2) and gib(found)["train"] == (26, 10)
    assert {phase.devices for phase in found if phase.name == "reference"} == {"reference"}


def advice(programs, usable, platform="tpu", cfg=CFG):
    chip = Chip(platform, usable * GIB)
    return advise(cfg, chip, phases(programs, RESIDENTS, True), RESIDENTS, WORK, ROWS)


def test_what_fits_needs_no_advice(programs):
    assert advice(programs, 41) == []


def test_a_smaller_batch_is_advised_where_it_is_enough(programs):
    """At 37 GiB train has 6 of its 10 GiB: 9 of 16 rows, of which 8 divide; decode has 2 of 5 GiB: 3 of 8 prompts."""
    lines = advice(programs, 37)
    assert any(line.startswith("train: rl.micro_batch_size: 8 (now 16)") for line in lines)
    assert any(line.startswith("decode: generation.prompts_per_batch: 3 (now 8)") for line in lines)
    assert not any("more devices" in line for line in lines)


def test_where_no_batch_is_small_enough_more_devices_are_advised(programs):
    lines = advice(programs, 24)
    assert any("31.0 GiB are there whatever the batch, 24.0 GiB may be used" in line for line in lines)
    assert any("model.lora.enabled" in line for line in lines)


def test_a_gpu_s_pool_is_named_first(programs):
    lines = advice(programs, 46, platform="cuda")  # 75 % are 34.5 GiB, 92 % 42.3
    assert lines[0].startswith("set XLA_PYTHON_CLIENT_MEM_FRACTION=0.92") and "41.0 GiB are needed" in lines[0]


def test_seconds_are_the_slower_of_products_and_bytes(programs):
    fast_memory, slow_memory = Chip("tpu", GIB, 1e14, 1e15), Chip("tpu", GIB, 1e20, float(GIB))
    assert least_seconds(programs["train"], fast_memory, WORK) == pytest.approx(10**15 / 4 / 1e14)
    assert least_seconds(programs["train"], slow_memory, WORK) == pytest.approx(5 + 2 * 15)
    assert least_seconds(programs["decode"], slow_memory, WORK) == pytest.approx(64 * (10 + 0.75 * 4))
    assert least_seconds(programs["train"], Chip("cpu", GIB), WORK) is None


def test_a_reference_of_its_own_works_while_the_policy_generates():
    seconds = {"prefill": 1.0, "decode": 4.0, "reference": 3.0, "train": 2.0}
    assert least_update_seconds(seconds, shared_reference=True) == 10
    assert least_update_seconds(seconds, shared_reference=False) == 7
    assert least_update_seconds(seconds | {"train": None}, shared_reference=True) is None
