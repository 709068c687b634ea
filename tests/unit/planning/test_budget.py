"""What lives together and what is advised, on programs whose sizes are made up."""

from dataclasses import replace

import pytest

from jax_rl.config.schema import Config, ModelConfig, RLConfig
from jax_rl.planning.budget import GIB, Residents, advise, least_seconds, least_update_seconds, phases
from jax_rl.planning.compiled import Program
from jax_rl.planning.targets import Chip
from jax_rl.planning.work import Batch, Work

WORK = Work(
    batch=Batch(prompts=8, rows=64, calls=1),
    group=8,
    prompt_len=64,
    new_tokens=64,
    step_rows=64,
    micro_rows=16,
    steps=1,
    evaluation=Batch(prompts=32, rows=32, calls=0),
)
RESIDENTS = Residents(state=20 * GIB, frozen=0, reference=5 * GIB, rollout_copy=10 * GIB, gradient=3 * GIB)
CFG = Config(model=ModelConfig(policy_name_or_path="x"), rl=RLConfig(micro_batch_size=16, batch_size=8))
ROWS = {"policy": 4, "reference": 4}


def program(name, temporaries, **parts):
    sizes = {part: n * GIB for part, n in parts.items()}
    peak = sum(sizes.values()) + temporaries * GIB
    return Program(name, 4, sizes, peak, 10**15, {}, 1.0, 1)


@pytest.fixture
def programs():
    made = [
        program("prefill", 1, parameters=10, kv_cache=2),
        program("decode", 1, parameters=10, kv_cache=4),
        program("reference", 2, parameters=5),
        program("accumulate", 13, parameters=5, gradients=6),  # 3 of the 13 are a micro-batch's gradient
        program("step_weights", 1, parameters=5, optimizer=15, gradients=6),
        program("step_moments", 2, optimizer=14, gradients=6),
    ]
    return {p.name: p for p in made}


def gib(found):
    return {phase.name: (phase.fixed / GIB, phase.varying / GIB) for phase in found}


def test_generation_holds_the_state_the_reference_and_the_second_copy(programs):
    assert gib(phases(programs, RESIDENTS, shared_reference=True)) == {
        "prefill": (35, 3),
        "decode": (35, 5),
        "reference": (35, 2),
        "accumulate": (25 + 6 + 3, 10),
        "step_weights": (25 + 6, 1),
        "step_moments": (25 + 6, 2),
    }


def test_a_reference_on_devices_of_its_own_is_alone_there(programs):
    found = phases(programs, replace(RESIDENTS, reference=0), shared_reference=False)
    assert gib(found)["reference"] == (5, 2) and gib(found)["accumulate"] == (20 + 6 + 3, 10)
    assert {phase.devices for phase in found if phase.name == "reference"} == {"reference"}


def advice(programs, usable, platform="tpu", cfg=CFG):
    chip = Chip(platform, usable * GIB)
    return advise(cfg, chip, phases(programs, RESIDENTS, True), RESIDENTS, WORK, ROWS)


def test_what_fits_needs_no_advice(programs):
    assert advice(programs, 44) == []


def test_a_smaller_batch_is_advised_where_it_is_enough(programs):
    """At 38 GiB accumulate has 4 of 10 GiB: 6 of 16 rows, of which 4 divide; decode has 3 of 5 GiB: 4 of 8 prompts."""
    lines = advice(programs, 38)
    assert any(line.startswith("accumulate: rl.micro_batch_size: 4 (now 16)") for line in lines)
    assert any(line.startswith("decode: generation.prompts_per_batch: 4 (now 8)") for line in lines)
    assert not any("more devices" in line for line in lines)


def test_of_packed_rows_the_tokens_are_advised(programs):
    """6.4 of 16 thousand, in whole texts of 128 tokens on each of 4 devices."""
    packed = replace(CFG, rl=replace(CFG.rl, micro_batch_tokens=16_000))
    lines = advice(programs, 38, cfg=packed)
    assert any(line.startswith("accumulate: rl.micro_batch_tokens: 6144 (now 16000)") for line in lines)


def test_what_minimal_rematerialization_keeps_need_not_be_kept(programs):
    minimal = replace(CFG, rl=replace(CFG.rl, remat="minimal"))
    assert any(line.startswith("accumulate: rl.remat: full") for line in advice(programs, 38, cfg=minimal))
    assert not any("rl.remat" in line for line in advice(programs, 38))


def test_an_evaluation_has_prompts_of_its_own(programs):
    programs["eval_decode"] = program("eval_decode", 2, parameters=10, kv_cache=8)
    lines = advice(programs, 40)
    assert any(line.startswith("eval_decode: generation.prompts_per_batch: 16 (now 32)") for line in lines)


def test_where_no_batch_is_small_enough_more_devices_are_advised(programs):
    lines = advice(programs, 24)
    assert any("34.0 GiB are there whatever the batch, 24.0 GiB may be used" in line for line in lines)
    assert any("model.lora.enabled" in line for line in lines)


def test_a_gpu_s_pool_is_named_where_it_is_enough(programs):
    lines = advice(programs, 48, platform="cuda")  # 75 % are 36 GiB, 92 % 44.2
    assert len(lines) == 1
    assert lines[0].startswith("set XLA_PYTHON_CLIENT_MEM_FRACTION=0.92") and "44.0 GiB are needed" in lines[0]


def test_seconds_are_the_slower_of_products_and_bytes(programs):
    fast_memory, slow_memory = Chip("tpu", GIB, 1e14, 1e15), Chip("tpu", GIB, 1e20, float(GIB))
    assert least_seconds(programs["accumulate"], fast_memory, WORK) == pytest.approx(10**15 / 4 / 1e14)
    assert least_seconds(programs["step_weights"], slow_memory, WORK) == pytest.approx(2 * 5 + 6 + 15)
    assert least_seconds(programs["step_moments"], slow_memory, WORK) == pytest.approx(6 + 2 * 14)
    filled = (64 + 8 * 32) / (64 + 8 * 64)  # a prompt whole, its completions half on the average
    assert least_seconds(programs["decode"], slow_memory, WORK) == pytest.approx(64 * (10 + filled * 4))
    assert least_seconds(programs["step_weights"], Chip("cpu", GIB), WORK) is None


def test_a_reference_of_its_own_works_while_the_policy_generates():
    seconds = {
        "prefill": 1.0,
        "decode": 4.0,
        "reference": 3.0,
        "accumulate": 1.5,
        "step_weights": 0.25,
        "step_moments": 0.25,
    }
    assert least_update_seconds(seconds, shared_reference=True) == 10
    assert least_update_seconds(seconds, shared_reference=False) == 7
    assert least_update_seconds(seconds | {"step_weights": None}, shared_reference=True) is None
