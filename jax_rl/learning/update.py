"""The policy update: completions to micro-batches, micro-batches to a gradient, a gradient to a step, and so on."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32

from jax_rl.config.schema import RLConfig
from jax_rl.learning.gradients import MicroBatch
from jax_rl.learning.logprobs import Params
from jax_rl.learning.losses import Sums, loss_weights
from jax_rl.learning.optimizer import TrainState
from jax_rl.learning.packing import BatchArray, Packing, make_micro_batches
from jax_rl.learning.programs import PER_TOKEN, LogprobProgram, UpdatePrograms, sum_names
from jax_rl.models.lora import policy_weights
from jax_rl.parallel.arrays import to_devices
from jax_rl.parallel.sharding import Layout


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class UpdateBatch:
    """Completions to learn from."""

    tokens: BatchArray  # [B, P+T] int32: left-padded prompt, right-padded completion
    positions: BatchArray  # [B, P+T] int32: 0, 1, ... over real tokens, -1 on pads
    mask: BatchArray  # [B, T] bool: Advantages.valid, the tokens that enter the loss
    advantages: BatchArray  # [B, T] f32
    ref_logp: BatchArray | None = None  # [B, T] f32, the reference's; needed iff kl_coef != 0
    old_logp: BatchArray | None = None  # [B, T] f32; None: the policy that is being updated drew the tokens
    sampler_logp: BatchArray | None = None  # [B, T] f32, what the sampler computed; only its gap to old_logp is logged


def run_update(
    state: TrainState,
    data: UpdateBatch,
    programs: UpdatePrograms,
    rl: RLConfig,
    frozen: Params | None = None,
) -> tuple[TrainState, dict[str, float | None]]:
    """Learns from one update's completions: ppo_epochs passes over optimizer steps of grad_accum completions each.

    `state.params` is what is trained; if that is adapters, `frozen` holds the weights that they adapt.
    `data` holds all B completions ([B, ...] arrays, old_logp None). Rows go in their order, without those that have no
    token in the mask. Old logprobs take a forward pass only if more than one optimizer step is made. The state is
    donated. Stops early when `skipped_in_row` reaches max_skipped_steps: then the caller saves the state and stops.

    Returns averages over the applied steps (loss, policy_loss and grad_norm per step, those of PER_TOKEN per token;
    None where there is nothing to average), and the counts token_count (summed over the applied steps),
    optimizer_steps and skipped_steps. sampler_logp_gap is the mean |old_logp - sampler_logp|.
    """
    if rl.kl_coef and data.ref_logp is None:
        raise ValueError(f"rl.kl_coef is {rl.kl_coef} but the batch has no ref_logp: compute it, or set kl_coef to 0")
    data = jax.tree.map(np.asarray, data)
    step_rows, _ = step_sizes(rl, len(data.mask), programs.layout)
    packing = packing_of(rl, len(data.mask), programs.logprobs)
    names = sum_names(data.ref_logp is not None, data.sampler_logp is not None)
    data = _pick(data, data.mask.any(axis=1))
    starts = range(0, len(data.mask), step_rows)
    if len(starts) * rl.ppo_epochs > 1:
        weights = policy_weights(state.params, frozen, programs.lora_scale)
        old = batched_logprobs(programs.logprobs, weights, data.tokens, data.positions, data.mask, packing)
        data = replace(data, old_logp=old)
    rows_of = [_pick(data, slice(start, start + step_rows)) for start in starts]
    steps = [make_step_batches(rows, packing, rl, programs.max_new_tokens) for rows in rows_of]

    done: list[Sums] = []
    for micro_batches in steps * rl.ppo_epochs:
        totals = programs.start(state.params, names)
        for micro_batch in micro_batches:
            totals = programs.accumulate(state.params, frozen, totals, _place_rows(micro_batch, programs.layout))
        # the last step's count, read when this one's work is under way: the devices do not wait for the host
        if done and int(state.skipped_in_row) >= rl.max_skipped_steps:
            break
        state, stats = programs.step(state, totals)
        done.append(stats)
    return state, _average([{name: float(x) for name, x in stats.items()} for stats in jax.device_get(done)])


def batched_logprobs(
    program: LogprobProgram,
    params: Params,
    tokens: BatchArray,
    positions: BatchArray,
    mask: BatchArray,
    packing: Packing,
) -> Float32[np.ndarray, "B T"]:
    """logp [B, T] of any number of completions, 0 outside the mask, in the micro-batches of an update."""
    return start_logprobs(program, params, tokens, positions, mask, packing)()


def start_logprobs(
    program: LogprobProgram,
    params: Params,
    tokens: BatchArray,
    positions: BatchArray,
    mask: BatchArray,
    packing: Packing,
) -> Callable[[], Float32[np.ndarray, "B T"]]:
    """`batched_logprobs`, under way on its devices; the call of what is returned waits for it."""
    tokens, positions, mask = jax.tree.map(np.asarray, (tokens, positions, mask))
    batches = make_micro_batches(tokens, positions, mask, packing)
    parts = [program.run(params, _place_rows(batch.rows, program.layout)) for batch in batches]

    def finish() -> Float32[np.ndarray, "B T"]:
        logp = np.zeros(mask.shape, np.float32)
        for batch, part in zip(batches, jax.device_get(parts), strict=True):
            batch.scatter(part, into=logp)
        return logp

    return finish


def packing_of(rl: RLConfig, completions: int, program: LogprobProgram) -> Packing:
    """How an update of so many completions is cut into micro-batches."""
    row_multiple = 1 if program.layout is None else program.layout.row_count
    _, rows = step_sizes(rl, completions, program.layout)
    return Packing(rows, rl.micro_batch_tokens, program.shares_prompts, row_multiple)


def step_sizes(rl: RLConfig, completions: int, layout: Layout | None) -> tuple[int, int]:
    """Completions of an optimizer step and of an unpacked micro-batch: of all that were rolled out, so that shapes
    do not depend on how many enter the loss."""
    step_rows = max(min(rl.grad_accum or completions, completions), 1)
    rows = min(rl.micro_batch_size or step_rows, step_rows)
    return step_rows, rows if layout is None else layout.fill(rows)


def make_step_batches(data: UpdateBatch, packing: Packing, rl: RLConfig, max_new_tokens: int) -> list[MicroBatch]:
    """The micro-batches of one optimizer step, whose completions are all of `data` (numpy arrays)."""
    weights = loss_weights(data.mask, rl.loss_aggregation, max_new_tokens)
    values = (weights, data.advantages, data.ref_logp, data.old_logp, data.sampler_logp)
    packed = make_micro_batches(data.tokens, data.positions, data.mask, packing)
    return [MicroBatch(batch.rows, *(None if x is None else batch.gather(x) for x in values)) for batch in packed]


def _place_rows(tree: Any, layout: Layout | None) -> Any:
    return tree if layout is None else to_devices(tree, layout.rows())


def _pick(data: UpdateBatch, rows: np.ndarray | slice) -> UpdateBatch:
    return jax.tree.map(lambda x: x[rows], data)


def _average(steps: list[dict[str, float]]) -> dict[str, float | None]:
    good = [step for step in steps if not step["skipped"]]
    tokens = float(sum(step["token_count"] for step in good))

    def mean(name: str, count: float) -> float | None:
        return sum(step[name] for step in good) / count if count and name in good[0] else None

    return {
        **{name: mean(name, float(len(good))) for name in ("loss", "policy_loss", "grad_norm")},
        **{name: mean(name, tokens) for name in PER_TOKEN},
        "token_count": tokens,
        "optimizer_steps": float(len(good)),
        "skipped_steps": float(len(steps) - len(good)),
    }
