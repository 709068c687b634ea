"""The policy update: micro-batches to a gradient, a gradient to a step, the steps of one update.

A few programs in all: one optimizer step with the gradient accumulation inside, one logprob pass. Their shapes depend
on the configuration and on the bucketed lengths only; missing rows are filled with masked ones.
"""

import math
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
from jax_rl.learning.logprobs import Forward, Params, Unembed, forward_logprobs
from jax_rl.learning.losses import Sums, loss_weights, policy_loss
from jax_rl.learning.optimizer import Optimizer, TrainState
from jax_rl.models.lora import policy_weights
from jax_rl.parallel.arrays import to_devices
from jax_rl.parallel.sharding import Layout

BatchArray = Any  # a numpy array on the host, a jax array inside a program

PER_TOKEN = ("approx_kl", "clip_fraction", "entropy", "kl_to_reference", "sampler_logp_gap")

UpdateStep = Callable[[TrainState, Params | None, "UpdateBatch"], tuple[TrainState, Sums]]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class UpdateBatch:
    """Completions to learn from. On the way into a step all fields carry a leading micro-batch axis."""

    tokens: BatchArray  # [B, P+T] int32: left-padded prompt, right-padded completion
    positions: BatchArray  # [B, P+T] int32: 0, 1, ... over real tokens, -1 on pads
    mask: BatchArray  # [B, T] bool: Advantages.valid, the tokens that enter the loss
    advantages: BatchArray  # [B, T] f32
    ref_logp: BatchArray | None = None  # [B, T] f32, the reference's; needed iff kl_coef != 0
    old_logp: BatchArray | None = None  # [B, T] f32; None: the policy that is being updated drew the tokens
    sampler_logp: BatchArray | None = None  # [B, T] f32, what the sampler computed; only its gap to old_logp is logged


@dataclass(frozen=True)
class LogprobProgram:
    """(params, tokens [B, L], positions [B, L], mask [B, T]) -> logp [B, T] f32, for old and reference logprobs."""

    run: Callable[[Params, BatchArray, BatchArray, BatchArray], Float32[Array, "B T"]]
    layout: Layout | None = None  # of the parameters; None: everything is on one device


@dataclass(frozen=True)
class UpdatePrograms:
    step: UpdateStep
    logprobs: LogprobProgram
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
) -> UpdatePrograms:
    """The two jitted functions of `run_update`. `forward(params, tokens, positions, remat=)` -> (hidden, cache).

    lora_scale: alpha / rank of the adapters, where these are what is trained.
    layout, shardings: of the policy's mesh, and of the state there; None: one device.
    """
    step = make_update_step(forward, unembed, optimizer, rl, max_new_tokens, lora_scale, layout, shardings)
    return UpdatePrograms(step, make_logprob_program(forward, unembed, layout), lora_scale, layout)


def make_logprob_program(forward: Forward, unembed: Unembed, layout: Layout | None = None) -> LogprobProgram:
    @partial(jax.jit, out_shardings=None if layout is None else layout.replicated)
    def logprobs(params: Params, tokens: BatchArray, positions: BatchArray, mask: BatchArray) -> Float32[Array, "B T"]:
        return forward_logprobs(forward, unembed, params, tokens, positions, mask, remat=False)[0]

    return LogprobProgram(logprobs, layout)


def make_update_step(
    forward: Forward,
    unembed: Unembed,
    optimizer: Optimizer,
    rl: RLConfig,
    max_new_tokens: int,
    lora_scale: float = 0.0,
    layout: Layout | None = None,
    shardings: TrainState | None = None,
) -> UpdateStep:
    """One optimizer step from an UpdateBatch of micro-batches: tokens [M, b, L], mask [M, b, T] and so on.

    `step(state, frozen, batch)`: `state.params` is what is trained: all weights (`frozen` is None), or the adapters of
    the weights in `frozen`, which are only read. Gradients add up in f32. A non-finite loss or gradient leaves params,
    moments and step as they are, bit for bit, and is counted. The state is donated. Stats: the sums of `policy_loss`,
    `grad_norm` before the clip, `skipped` (0 or 1). `shardings` are those of the state, on the way in and out.
    """

    def loss_of(trained: Params, frozen: Params | None, batch: UpdateBatch, token_weights: Array) -> tuple[Array, Sums]:
        params = policy_weights(trained, frozen, lora_scale)
        logp, entropy = forward_logprobs(
            forward, unembed, params, batch.tokens, batch.positions, batch.mask, remat=True
        )
        old_logp = jax.lax.stop_gradient(logp) if batch.old_logp is None else batch.old_logp
        loss, sums = policy_loss(
            logp,
            old_logp,
            batch.ref_logp,
            entropy,
            batch.advantages,
            batch.mask,
            token_weights,
            algorithm=rl.algorithm,
            clip_eps=rl.clip_eps,
            kl_coef=rl.kl_coef,
            kl_estimator=rl.kl_estimator,
            entropy_coef=rl.entropy_coef,
        )
        if batch.sampler_logp is not None:
            gap = jnp.abs(old_logp - batch.sampler_logp)
            sums["sampler_logp_gap"] = jax.lax.stop_gradient(jnp.sum(jnp.where(batch.mask, gap, 0.0)))
        return loss, sums

    def accumulate(trained: Params, frozen: Params | None, batch: UpdateBatch) -> tuple[Params, Sums]:
        rows = batch.mask.reshape(-1, batch.mask.shape[-1])
        weights = loss_weights(rows, rl.loss_aggregation, max_new_tokens).reshape(batch.mask.shape)
        gradient_of = jax.grad(loss_of, has_aux=True)

        def add(totals: tuple[Params, Sums], inputs: tuple[UpdateBatch, Array]) -> tuple[tuple[Params, Sums], None]:
            return jax.tree.map(lambda total, part: total + part, totals, gradient_of(trained, frozen, *inputs)), None

        first = jax.tree.map(lambda x: x[0], (batch, weights))
        shapes = jax.eval_shape(gradient_of, trained, frozen, *first)[1]
        sums = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        gradients = jax.tree.map(lambda p: jnp.zeros_like(p, dtype=jnp.float32), trained)
        return jax.lax.scan(add, (gradients, sums), (batch, weights))[0]

    def step(state: TrainState, frozen: Params | None, batch: UpdateBatch) -> tuple[TrainState, Sums]:
        gradients, sums = accumulate(state.params, frozen, batch)
        grad_norm = optax.tree.norm(gradients)
        good = jnp.isfinite(sums["loss"]) & jnp.isfinite(grad_norm)
        params, opt_state = optimizer.apply(gradients, state.opt_state, state.params)
        old = (state.params, state.opt_state, state.step)
        new = (params, opt_state, state.step + 1)
        params, opt_state, count = jax.tree.map(lambda n, o: jnp.where(good, n, o), new, old)
        bad = jnp.logical_not(good).astype(jnp.int32)
        in_row = jnp.where(good, 0, state.skipped_in_row + 1)
        new_state = TrainState(params, opt_state, count, in_row, state.skipped_total + bad)
        return new_state, sums | {"grad_norm": grad_norm, "skipped": bad}

    if layout is None:
        return jax.jit(step, donate_argnums=0)
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, layout.replicated))


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
    step_rows, micro_rows = step_sizes(rl, len(data.mask), programs.layout)
    has_tokens = data.mask.any(axis=1)
    data = jax.tree.map(lambda x: x[has_tokens], data)
    starts = range(0, len(data.mask), step_rows)
    if len(starts) * rl.ppo_epochs > 1:
        weights = policy_weights(state.params, frozen, programs.lora_scale)
        old = batched_logprobs(programs.logprobs, weights, data.tokens, data.positions, data.mask, micro_rows)
        data = replace(data, old_logp=old)

    done: list[dict[str, float]] = []
    for start in [*starts] * rl.ppo_epochs:
        rows = jax.tree.map(lambda x, start=start: x[start : start + step_rows], data)
        micro_batches = _as_micro_batches(rows, math.ceil(step_rows / micro_rows), micro_rows)
        state, sums = programs.step(state, frozen, _place_rows(micro_batches, programs.layout, axis=1))
        done.append({name: float(value) for name, value in jax.device_get(sums).items()})
        if int(state.skipped_in_row) >= rl.max_skipped_steps:
            break
    return state, _average(done)


def batched_logprobs(
    program: LogprobProgram, params: Params, tokens: BatchArray, positions: BatchArray, mask: BatchArray, rows: int
) -> Float32[np.ndarray, "B T"]:
    """logp [B, T] of any number of completions through a program for `rows` of them (0: all at once)."""
    return start_logprobs(program, params, tokens, positions, mask, rows)()


def start_logprobs(
    program: LogprobProgram, params: Params, tokens: BatchArray, positions: BatchArray, mask: BatchArray, rows: int
) -> Callable[[], Float32[np.ndarray, "B T"]]:
    """`batched_logprobs`, under way on its devices; the call of what is returned waits for it."""
    total = len(mask)
    data = jax.tree.map(np.asarray, UpdateBatch(tokens, positions, mask, np.zeros(mask.shape, np.float32)))
    rows = _fill(rows or max(total, 1), program.layout)
    batches = _as_micro_batches(data, math.ceil(total / rows), rows)
    parts = []
    for batch in zip(batches.tokens, batches.positions, batches.mask, strict=True):
        parts.append(program.run(params, *_place_rows(batch, program.layout)))
    return lambda: np.concatenate([np.zeros((0, mask.shape[1]), np.float32), *jax.device_get(parts)])[:total]


def step_sizes(rl: RLConfig, completions: int, layout: Layout | None) -> tuple[int, int]:
    """Completions of an optimizer step and of a micro-batch: of all that were rolled out, so that shapes stay."""
    step_rows = max(min(rl.grad_accum or completions, completions), 1)
    return step_rows, _fill(min(rl.micro_batch_size or step_rows, step_rows), layout)


def _fill(rows: int, layout: Layout | None) -> int:
    return rows if layout is None else layout.fill(rows)


def _place_rows(arrays: Any, layout: Layout | None, axis: int = 0) -> Any:
    return arrays if layout is None else to_devices(arrays, layout.rows(axis))


def _as_micro_batches(data: UpdateBatch, count: int, rows: int) -> UpdateBatch:
    """[N, ...] numpy arrays to [count, rows, ...], N <= count * rows, filled up with rows of pads outside the mask."""

    def fill(array: np.ndarray, value: int = 0) -> np.ndarray:
        filler = np.full((count * rows - len(array), *array.shape[1:]), value, array.dtype)
        return np.concatenate([array, filler]).reshape(count, rows, *array.shape[1:])

    return replace(jax.tree.map(fill, data), positions=fill(data.positions, -1))


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
