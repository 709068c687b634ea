"""The jitted programs of an update: one adds a micro-batch's gradient, one makes the step, one computes logprobs.

Micro-batches have shapes from a small set (`packing.py`), and each shape is a program.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

from jax_rl.config.schema import RLConfig
from jax_rl.learning.gradients import Accumulate, Totals, make_accumulate
from jax_rl.learning.logprobs import Forward, Params, Unembed, row_logprobs
from jax_rl.learning.optimizer import Optimizer, TrainState
from jax_rl.learning.optimizer_step import OptimizerStep, make_step
from jax_rl.learning.packing import Rows
from jax_rl.models.blocks import keep
from jax_rl.parallel.sharding import Layout

PER_TOKEN = ("approx_kl", "clip_fraction", "entropy", "kl_to_reference", "sampler_logp_gap")


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
    step(state, totals) -> (state, stats): one optimizer step.

    `trained`, the state's params, is all weights (`frozen` is None), or the adapters of the weights in `frozen`.
    """

    start: Callable[[Params, tuple[str, ...]], Totals]
    accumulate: Accumulate
    step: OptimizerStep
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
        totals_at = None
    else:
        assert shardings is not None
        totals_at = Totals(shardings.params, layout.replicated)
    accumulate = make_accumulate(forward, unembed, rl, lora_scale, layout or keep)
    return UpdatePrograms(
        start=jax.jit(_no_totals, static_argnums=1, out_shardings=totals_at),
        accumulate=jax.jit(accumulate, donate_argnums=2, out_shardings=totals_at),
        step=make_step(optimizer, layout, shardings),
        logprobs=make_logprob_program(forward, unembed, layout, shares_prompts),
        max_new_tokens=max_new_tokens,
        lora_scale=lora_scale,
        layout=layout,
    )


def make_logprob_program(
    forward: Forward,
    unembed: Unembed,
    layout: Layout | None = None,
    shares_prompts: bool = True,
    name: str = "logprobs",
) -> LogprobProgram:
    """name: of the program, in profiles and among the compiled ones."""

    @jax.named_scope(name)
    def logprobs(params: Params, rows: Rows) -> Float32[Array, "R S"]:
        return row_logprobs(forward, unembed, params, rows, remat=None)[0]

    logprobs.__name__ = name
    run = jax.jit(logprobs, out_shardings=None if layout is None else layout.replicated)
    return LogprobProgram(run, layout, shares_prompts)


def _no_totals(trained: Params, names: tuple[str, ...]) -> Totals:
    gradients = jax.tree.map(lambda p: jnp.zeros_like(p, dtype=jnp.float32), trained)
    return Totals(gradients, {name: jnp.zeros((), jnp.float32) for name in names})


def sum_names(with_reference: bool, with_sampler: bool) -> tuple[str, ...]:
    """The sums that a step adds up, whose data has reference and sampler logprobs or not."""
    absent = {"kl_to_reference": not with_reference, "sampler_logp_gap": not with_sampler}
    return ("loss", "policy_loss", "token_count", *(name for name in PER_TOKEN if not absent.get(name)))
