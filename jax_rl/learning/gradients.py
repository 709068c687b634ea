"""The gradient of a micro-batch's loss, added to what the step's earlier micro-batches have added up to."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jax_rl.config.schema import RLConfig
from jax_rl.learning.logprobs import Forward, Params, Unembed, row_logprobs
from jax_rl.learning.losses import Sums, policy_loss
from jax_rl.learning.packing import BatchArray, Rows
from jax_rl.models.blocks import Place, head_name, keep, look_up
from jax_rl.models.lora import policy_weights
from jax_rl.models.tables import Table


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


Accumulate = Callable[[Params, Params | None, Totals, MicroBatch], Totals]


def make_accumulate(
    forward: Forward, unembed: Unembed, rl: RLConfig, lora_scale: float = 0.0, place: Place = keep
) -> Accumulate:
    """(trained, frozen, totals, micro-batch) -> totals: see `UpdatePrograms`, `make_programs`."""

    def loss_of(params: Params, batch: MicroBatch) -> tuple[Array, Sums]:
        mask = batch.rows.mask
        logp, entropy = row_logprobs(forward, unembed, params, batch.rows, remat=rl.remat)
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

    def of_adapters(adapters: Params, frozen: Params, total: Params, batch: MicroBatch) -> tuple[Params, Sums]:
        def loss(adapters: Params) -> tuple[Array, Sums]:
            return loss_of(policy_weights(adapters, frozen, lora_scale), batch)

        with jax.named_scope("gradients"):
            gradients, sums = jax.grad(loss, has_aux=True)(adapters)
        with jax.named_scope("accumulate"):
            return jax.tree.map(jnp.add, total, gradients), sums

    def of_weights(params: Params, total: Params, batch: MicroBatch) -> tuple[Params, Sums]:
        """The tables' gradients are added in place."""
        tokens, head = batch.rows.tokens, head_name(params)
        body = {name: leaf for name, leaf in params.items() if name not in ("embed", head)}

        def loss(body: Params, rows: Array, head_total: Array) -> tuple[Array, Sums]:
            tables = {"embed": Table(params["embed"], rows)}
            tables[head] = Table(params[head], rows if head == "embed" else None, head_total)
            return loss_of(body | tables, batch)

        rows = look_up(params["embed"], tokens, place)
        with jax.named_scope("gradients"):
            gradients, sums = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(body, rows, total[head])
        with jax.named_scope("accumulate"):
            of_body, of_rows, with_head = gradients
            added = {name: jax.tree.map(jnp.add, total[name], leaf) for name, leaf in of_body.items()}
            tables = {"embed": total["embed"], head: with_head}  # one table where they are tied
            of_rows = place(of_rows.astype(jnp.float32), (None, None, None))
            return added | tables | {"embed": tables["embed"].at[tokens].add(of_rows)}, sums

    def accumulate(trained: Params, frozen: Params | None, totals: Totals, batch: MicroBatch) -> Totals:
        if frozen is None:
            gradients, sums = of_weights(trained, totals.gradients, batch)
        else:
            gradients, sums = of_adapters(trained, frozen, totals.gradients, batch)
        return Totals(gradients, jax.tree.map(jnp.add, totals.sums, sums))

    return accumulate
