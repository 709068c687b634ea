"""The policy update: micro-batches to a gradient, a gradient to a step, the steps of one update.

A few programs in all: one adds a micro-batch's gradient, one makes the step, one computes logprobs. Micro-batches have
shapes from a small set (`packing.py`) and each shape is a program.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float32

from jax_rl.config.schema import RLConfig
from jax_rl.learning.logprobs import Forward, Params, Unembed, row_logprobs
from jax_rl.learning.losses import Sums, loss_weights, policy_loss
from jax_rl.learning.optimizer import Optimizer, TrainState
from jax_rl.learning.packing import BatchArray, Packing, Rows, make_micro_batches
from jax_rl.models.lora import policy_weights
from jax_rl.parallel.arrays import to_devices
from jax_rl.parallel.sharding import Layout

PER_TOKEN = ("approx_kl", "clip_fraction", "entropy", "kl_to_reference", "sampler_logp_gap")


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


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MicroBatch:
    """What one forward and backward pass takes. `weights` is the share of each token in the step's loss."""

    rows: Rows
    weights: BatchArray  # [R, S] f32, as all below
    advantages: BatchArray
    ref_logp: BatchArray | None
    old_logp: BatchArray | None
    sampler_logp: BatchArray | None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Totals:
    """What the micro-batches of one optimizer step add up to."""

    gradients: Params  # f32
    sums: Any  # those of `policy_loss` by name; in a tree of shardings one for all


@dataclass(frozen=True)
class LogprobProgram:
    """`run(params, rows)` -> logp [R, S] f32, jitted; for old and reference logprobs."""

    run: Callable[[Params, Rows], Float32[Array, "R S"]]
    layout: Layout | None = None  # of the parameters; None: everything is on one device
    shares_prompts: bool = True  # whether the model reads packed groups


@dataclass(frozen=True)
class UpdatePrograms:
    """The jitted functions of `run_update`.

    start(trained, names of the sums) -> Totals of nothing.
    accumulate(trained, frozen, totals, micro_batch) -> Totals; gradients add up in f32, and `totals` is donated.
    apply(state, totals) -> (state, stats): one optimizer step; the state is donated. A non-finite loss or gradient
    leaves params, moments and step as they are, bit for bit, and is counted. Stats: the sums of `policy_loss`,
    `grad_norm` before the clip, `skipped` (0 or 1).

    `trained`, the state's params, is all weights (`frozen` is None), or the adapters of the weights in `frozen`.
    """

    start: Callable[[Params, tuple[str, ...]], Totals]
    accumulate: Callable[[Params, Params | None, Totals, MicroBatch], Totals]
    apply: Callable[[TrainState, Totals], tuple[TrainState, Sums]]
    logprobs: LogprobProgram
    max_new_tokens: int
    lora_scale: float = 0.0
    layout: Layout | None = None


def make_programs(
    forward: Forward,
    unembed: Unembed,
    optimizer: Optimizer,
    rl: RLConfig,
    max_new_tokens: int,
    lora_scale: float = 0.0,
    layout: Layout | None = None,
    shardings: TrainState | None = None,
    shares_prompts: bool = True,
) -> UpdatePrograms:
    """`forward(params, tokens, positions, segments=, remat=)` -> (hidden, cache).

    lora_scale: alpha / rank of the adapters, where these are what is trained.
    layout, shardings: of the policy's mesh, and of the state there; None: one device.
    shares_prompts: whether `forward` reads packed groups; recurrent families do not.
    """
    if layout is None:
        totals_at, applied_at = None, None
    else:
        assert shardings is not None
        totals_at = Totals(shardings.params, layout.replicated)
        applied_at = (shardings, layout.replicated)
    accumulate = make_accumulate(forward, unembed, rl, lora_scale)
    return UpdatePrograms(
        start=jax.jit(_no_totals, static_argnums=1, out_shardings=totals_at),
        accumulate=jax.jit(accumulate, donate_argnums=2, out_shardings=totals_at),
        apply=jax.jit(make_apply(optimizer), donate_argnums=0, out_shardings=applied_at),
        logprobs=make_logprob_program(forward, unembed, layout, shares_prompts),
        max_new_tokens=max_new_tokens,
        lora_scale=lora_scale,
        layout=layout,
    )


def make_logprob_program(
    forward: Forward, unembed: Unembed, layout: Layout | None = None, shares_prompts: bool = True
) -> LogprobProgram:
    @partial(jax.jit, out_shardings=None if layout is None else layout.replicated)
    def logprobs(params: Params, rows: Rows) -> Float32[Array, "R S"]:
        return row_logprobs(forward, unembed, params, rows, remat=False)[0]

    return LogprobProgram(logprobs, layout, shares_prompts)


def _no_totals(trained: Params, names: tuple[str, ...]) -> Totals:
    gradients = jax.tree.map(lambda p: jnp.zeros_like(p, dtype=jnp.float32), trained)
    return Totals(gradients, {name: jnp.zeros((), jnp.float32) for name in names})


def make_accumulate(
    forward: Forward, unembed: Unembed, rl: RLConfig, lora_scale: float = 0.0
) -> Callable[[Params, Params | None, Totals, MicroBatch], Totals]:
    """See UpdatePrograms."""

    def loss_of(trained: Params, frozen: Params | None, batch: MicroBatch) -> tuple[Array, Sums]:
        params, mask = policy_weights(trained, frozen, lora_scale), batch.rows.mask
        logp, entropy = row_logprobs(forward, unembed, params, batch.rows, remat=True)
        old_logp = jax.lax.stop_gradient(logp) if batch.old_logp is None else batch.old_logp
        loss, sums = policy_loss(
            logp,
            old_logp,
            batch.ref_logp,
            entropy,
            batch.advantages,
            mask,
            batch.weights,
            algorithm=rl.algorithm,
            clip_eps=rl.clip_eps,
            kl_coef=rl.kl_coef,
            kl_estimator=rl.kl_estimator,
            entropy_coef=rl.entropy_coef,
        )
        if batch.sampler_logp is not None:
            gap = jnp.abs(old_logp - batch.sampler_logp)
            sums["sampler_logp_gap"] = jax.lax.stop_gradient(jnp.sum(jnp.where(mask, gap, 0.0)))
        return loss, sums

    def accumulate(trained: Params, frozen: Params | None, totals: Totals, batch: MicroBatch) -> Totals:
        part = Totals(*jax.grad(loss_of, has_aux=True)(trained, frozen, batch))
        return jax.tree.map(jnp.add, totals, part)

    return accumulate


def make_apply(optimizer: Optimizer) -> Callable[[TrainState, Totals], tuple[TrainState, Sums]]:
    """See UpdatePrograms."""

    def apply(state: TrainState, totals: Totals) -> tuple[TrainState, Sums]:
        grad_norm = optax.tree.norm(totals.gradients)
        good = jnp.isfinite(totals.sums["loss"]) & jnp.isfinite(grad_norm)
        params, opt_state = optimizer.apply(totals.gradients, state.opt_state, state.params)
        old = (state.params, state.opt_state, state.step)
        new = (params, opt_state, state.step + 1)
        params, opt_state, count = jax.tree.map(lambda n, o: jnp.where(good, n, o), new, old)
        bad = jnp.logical_not(good).astype(jnp.int32)
        in_row = jnp.where(good, 0, state.skipped_in_row + 1)
        new_state = TrainState(params, opt_state, count, in_row, state.skipped_total + bad)
        return new_state, totals.sums | {"grad_norm": grad_norm, "skipped": bad}

    return apply


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
        state, stats = programs.apply(state, totals)
        done.append(stats)
        if int(state.skipped_in_row) >= rl.max_skipped_steps:
            break
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


def sum_names(with_reference: bool, with_sampler: bool) -> tuple[str, ...]:
    """The sums that a step adds up, whose data has reference and sampler logprobs or not."""
    absent = {"kl_to_reference": not with_reference, "sampler_logp_gap": not with_sampler}
    return ("loss", "policy_loss", "token_count", *(name for name in PER_TOKEN if not absent.get(name)))


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
