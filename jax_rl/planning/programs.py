"""The programs of an update on abstract arrays: the trainer's own code, compiled and never run."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Sharding

from jax_rl.config import Config, resolve_reference
from jax_rl.learning.gradients import MicroBatch, Totals
from jax_rl.learning.optimizer import abstract_train_state, make_optimizer
from jax_rl.learning.optimizer_step import split_state
from jax_rl.learning.packing import Rows
from jax_rl.learning.programs import make_logprob_program, make_programs, sum_names
from jax_rl.learning.update import packing_of
from jax_rl.models.cache import growing_part, with_grown
from jax_rl.models.lora import adapter_specs, policy_weights
from jax_rl.models.params import Params, Specs, abstract_params
from jax_rl.models.registry import Model
from jax_rl.models.sharing import Places
from jax_rl.parallel.layouts import Layouts
from jax_rl.parallel.sharding import Layout
from jax_rl.planning.compiled import Program, compile_program, name_part, tree_bytes
from jax_rl.planning.flops import forward_flops, train_flops
from jax_rl.planning.work import EVALUATION, Batch, Cut, cut, work_of
from jax_rl.rollout.decode import DecodePrograms, DecodeState
from jax_rl.rollout.sampling import SamplingParams
from jax_rl.setup import cache_dtype, evaluation_sampling, training_sampling


class Builder:
    """Makes the programs of one config on its layouts."""

    def __init__(self, cfg: Config, model: Model, layouts: Layouts):
        self.cfg, self.model, self.layouts = cfg, model, layouts
        self.dtype = jnp.dtype(cfg.misc.dtype)
        self.work = work_of(cfg, layouts)
        lora = cfg.model.lora
        self.adapters = adapter_specs(model.specs, lora.rank, lora.target_modules) if lora.enabled else None
        self.scale = lora.alpha / lora.rank
        self.trained_specs: Specs = model.specs if self.adapters is None else self.adapters
        self.trained_dtype = self.dtype if self.adapters is None else jnp.dtype(jnp.float32)

    def trained(self, layout: Layout) -> Params:
        return abstract_params(self.trained_specs, self.trained_dtype, layout.sharding_for)

    def frozen(self, layout: Layout) -> Params | None:
        """The weights that adapters adapt; None where all weights are trained."""
        return None if self.adapters is None else abstract_params(self.model.specs, self.dtype, layout.sharding_for)

    def policy(self, layout: Layout, scale: float) -> Params:
        weights = policy_weights(self.trained(layout), self.frozen(layout), scale)
        return jax.tree.map(partial(_abstract, sharding=layout.replicated), weights)

    def generation(self) -> list[Program]:
        """An update's, then an evaluation's where its batches are larger."""
        made = self._generation("", self.work.batch, training_sampling(self.cfg))
        if self.work.evaluation is None:
            return made
        temperature = self.cfg.eval.temperature if self.cfg.eval.num_samples_per_prompt > 1 else 0.0
        sampling = evaluation_sampling(self.cfg, temperature)
        return made + self._generation(EVALUATION, self.work.evaluation, sampling)

    def _generation(self, prefix: str, batch: Batch, sampling: SamplingParams) -> list[Program]:
        """Prefill; decode with the largest cache; and the growth to it, during which the smaller one is still there."""
        work, layout = self.work, self.layouts.rollout
        model = replace(self.model, place=layout)
        programs = DecodePrograms(model, work.new_tokens, (1,), 0, cache_dtype(self.cfg))
        params = self.policy(layout, self.scale)

        def array(*shape: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(shape, dtype, sharding=layout.replicated)

        prompts = layout.fill(batch.prompts)
        places = Places(array(batch.rows), array(batch.rows), array(prompts, batch.rows // prompts))
        tokens = array(prompts, work.prompt_len)
        keys = array(batch.rows, dtype=jax.eval_shape(jax.random.key, 0).dtype)
        inputs = (tokens, tokens, keys, array(batch.rows, dtype=jnp.bool_), None, places)
        sizes = work.cache_sizes
        run = jax.jit(programs.prefill, static_argnames="slots")
        lower = partial(run.lower, params, *inputs, slots=sizes[0], sampling=sampling)
        flops = batch.calls * forward_flops(model, batch.prompts, work.prompt_len, 1)
        parts: dict[str, Any] = {"parameters": params, "inputs": inputs}
        prefill, compiled = compile_program(prefix + "prefill", layout, lower, parts, flops, batch.calls)
        if compiled is None:
            return [prefill]
        shardings = compiled.output_shardings

        def state(slots: int) -> DecodeState:
            shapes = jax.eval_shape(partial(programs.prefill, slots=slots, sampling=sampling), params, *inputs)
            return jax.tree.map(_with_sharding, shapes, shardings)

        made = [name_part(prefill, kv_cache=tree_bytes(state(sizes[0]).cache))]
        if len(sizes) > 1:
            before = state(sizes[-2])
            run = jax.jit(programs.grow, static_argnames="slots")
            part = growing_part(before.cache)
            lower = partial(run.lower, part, slots=sizes[-1])
            parts = {"parameters": (), "kv_cache": part, "inputs": ()}
            grow, compiled = compile_program(prefix + "grow", layout, lower, parts, 0, batch.calls * (len(sizes) - 1))
            rest = tree_bytes(before) - tree_bytes(part)  # is there beside what grows
            made.append(replace(grow, peak_bytes=None if grow.peak_bytes is None else grow.peak_bytes + rest))
            if compiled is None:
                return made
            shardings = shardings._replace(cache=with_grown(shardings.cache, compiled.output_shardings))
        last = state(sizes[-1])
        run = jax.jit(programs.decode, donate_argnames="state")
        lower = partial(run.lower, params, last, array(), array(), sampling=sampling)
        flops = forward_flops(model, batch.rows, work.new_tokens, work.new_tokens, before=work.prompt_len)
        parts = {"parameters": params, "kv_cache": last.cache, "inputs": _without_cache(last)}
        return [*made, compile_program(prefix + "decode", layout, lower, parts, batch.calls * flops, batch.calls)[0]]

    def reference(self) -> list[Program]:
        """Logprobs under the frozen reference; nothing where no KL is asked for."""
        if not self.cfg.rl.kl_coef:
            return []
        work, layout = self.work, self.layouts.reference
        model = replace(self.model, place=layout)
        program = make_logprob_program(model.forward, model.unembed, layout, model.shares_prompts)
        if resolve_reference(self.cfg) == "lora_base":
            params = self.policy(layout, 0.0)
        else:
            params = abstract_params(model.specs, self.dtype, layout.sharding_for)
        completions = work.batch.prompts * work.group
        parts = cut(work, completions, packing_of(self.cfg.rl, completions, program))
        inputs = self._rows(parts, layout)
        flops = forward_flops(model, parts.prompts, work.prompt_len, 0)
        flops += forward_flops(model, completions, work.new_tokens, work.new_tokens, before=work.prompt_len)
        lower = partial(_lower, program.run, params, inputs)
        given = {"parameters": params, "inputs": inputs}
        calls = work.batch.calls
        return [compile_program("reference", layout, lower, given, calls * flops, calls * parts.count)[0]]

    def train(self) -> list[Program]:
        """The programs of an optimizer step: one adds a micro-batch's gradient to the sums, two make the step."""
        work, layout, rl = self.work, self.layouts.policy, self.cfg.rl
        model, optimizer = replace(self.model, place=layout), make_optimizer(rl)
        trained, frozen = self.trained(layout), self.frozen(layout)
        state = abstract_train_state(trained, optimizer, layout.replicated)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
        programs = make_programs(
            model.forward,
            model.unembed,
            optimizer,
            rl,
            work.new_tokens,
            self.scale,
            layout,
            shardings,
            model.shares_prompts,
        )
        packing = packing_of(rl, rl.batch_size * work.group, programs.logprobs)
        micro = cut(work, work.step_rows, packing)
        batch = self._micro_batch(micro, layout)
        names = sum_names(with_reference=batch.ref_logp is not None, with_sampler=True)
        sums = {name: jax.ShapeDtypeStruct((), jnp.float32, sharding=layout.replicated) for name in names}
        totals = Totals(jax.tree.map(lambda p: _with_dtype(p, jnp.float32), trained), sums)

        count = partial(train_flops, self.model, adapters=self.adapters, remat=rl.remat)
        flops = count(rows=micro.prompts, tokens=work.prompt_len, scored=0)
        flops += count(rows=work.step_rows, tokens=work.new_tokens, scored=work.new_tokens, before=work.prompt_len)
        parts = {"parameters": (trained, frozen), "gradients": totals.gradients, "inputs": (batch, sums)}
        lower = partial(_lower, programs.accumulate, trained, frozen, totals, batch)
        calls = work.steps * micro.count
        accumulate, _ = compile_program("accumulate", layout, lower, parts, flops * work.steps, calls)

        held, moments, counters = split_state(state)
        parts = {"parameters": trained, "optimizer": state.opt_state, "gradients": totals.gradients}
        parts |= {"inputs": sums["loss"]}  # all that it reads of them
        lower = partial(_lower, programs.step.weights, held, moments, totals)
        weights, _ = compile_program("step_weights", layout, lower, parts, 0, work.steps)

        finite = jax.ShapeDtypeStruct((), jnp.bool_, sharding=layout.replicated)
        parts = {"optimizer": moments, "gradients": totals.gradients, "inputs": (sums, counters, finite)}
        lower = partial(_lower, programs.step.moments, (moments, counters), totals, finite)
        return [accumulate, weights, compile_program("step_moments", layout, lower, parts, 0, work.steps)[0]]

    def _rows(self, micro: Cut, layout: Layout) -> Rows:
        def array(columns: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((micro.rows, columns), dtype, sharding=layout.rows())

        tokens, slots = array(micro.columns), array(micro.slots)
        return Rows(tokens, tokens, tokens if micro.segments else None, slots, slots, array(micro.slots, jnp.bool_))

    def _micro_batch(self, micro: Cut, layout: Layout) -> MicroBatch:
        rows = self._rows(micro, layout)
        values = _with_dtype(rows.targets, jnp.float32)
        return MicroBatch(
            rows,
            weights=values,
            advantages=values,
            ref_logp=values if self.cfg.rl.kl_coef else None,
            old_logp=values if self.work.steps > 1 else None,
            sampler_logp=values,
        )


def _lower(program: Any, *args: Any) -> Any:
    """Of a jitted function that is typed as what it computes."""
    return program.lower(*args)


def _without_cache(state: DecodeState) -> dict[str, Any]:
    return {name: value for name, value in state._asdict().items() if name != "cache"}


def _abstract(leaf: Any, sharding: Sharding) -> jax.ShapeDtypeStruct:
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _with_sharding(leaf: jax.ShapeDtypeStruct, sharding: Sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _with_dtype(leaf: jax.ShapeDtypeStruct, dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=leaf.sharding)
