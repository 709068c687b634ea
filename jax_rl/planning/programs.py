"""The programs of an update on abstract arrays: the trainer's own code, compiled and never run."""

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Sharding

from jax_rl.config import Config, resolve_reference
from jax_rl.learning.optimizer import TrainState, abstract_train_state, make_optimizer
from jax_rl.learning.packing import Rows
from jax_rl.learning.programs import MicroBatch, make_logprob_program, make_programs, sum_names
from jax_rl.learning.update import step_sizes
from jax_rl.models.lora import adapter_specs, policy_weights
from jax_rl.models.params import Params, Specs, abstract_params
from jax_rl.models.registry import Model
from jax_rl.parallel.layouts import Layouts
from jax_rl.parallel.sharding import Layout
from jax_rl.planning.compiled import Program, compile_program, name_part, tree_bytes
from jax_rl.planning.flops import forward_flops, train_flops
from jax_rl.rollout.decode import DecodePrograms, DecodeState
from jax_rl.rollout.shapes import bucket, cache_slots
from jax_rl.setup import cache_dtype, training_sampling


@dataclass(frozen=True)
class Work:
    """The shapes of an update, from the config alone: every prompt as long as it may be.

    Of rows packed under a token budget: as many such completions, each with its prompt, as the budget holds.
    """

    prompts: int  # of one generation batch
    rows: int  # completions that it decodes, those that fill up the devices included
    batches: int  # generation batches
    group: int
    prompt_len: int
    new_tokens: int
    step_rows: int  # completions of an optimizer step
    micro_rows: int  # of a forward and backward pass
    steps: int  # optimizer steps

    @property
    def length(self) -> int:
        return self.prompt_len + self.new_tokens

    @property
    def cache_sizes(self) -> list[int]:
        """Slots of the cache, from the prompt's to the longest completion's."""
        sizes = [cache_slots(self.prompt_len, 0, self.new_tokens)]
        while sizes[-1] < self.length - 1:
            sizes.append(cache_slots(self.prompt_len, sizes[-1] - self.prompt_len + 1, self.new_tokens))
        return sizes

    @property
    def micro_batches(self) -> int:
        """Of an optimizer step."""
        return math.ceil(self.step_rows / self.micro_rows)


def work_of(cfg: Config, layouts: Layouts) -> Work:
    group, prompts = cfg.generation.num_samples_per_prompt, cfg.rl.batch_size
    completions = prompts * group
    step_rows, micro_rows = step_sizes(cfg.rl, completions, layouts.policy)
    prompt_len, new_tokens = bucket(cfg.data.max_prompt_tokens), cfg.generation.max_new_tokens
    if cfg.rl.micro_batch_tokens:
        micro_rows = layouts.policy.fill(max(cfg.rl.micro_batch_tokens // (prompt_len + new_tokens), 1))
    at_once = min(cfg.generation.prompts_per_batch or prompts, prompts)
    return Work(
        prompts=at_once,
        rows=layouts.rollout.fill(at_once * group),
        batches=math.ceil(prompts / at_once),
        group=group,
        prompt_len=prompt_len,
        new_tokens=new_tokens,
        step_rows=step_rows,
        micro_rows=micro_rows,
        steps=math.ceil(completions / step_rows) * cfg.rl.ppo_epochs,
    )


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
        """Prefill; decode with the largest cache; and the growth to it, during which the smaller one is still there."""
        work, layout, sampling = self.work, self.layouts.rollout, training_sampling(self.cfg)
        model = replace(self.model, place=layout)
        programs = DecodePrograms(model, work.new_tokens, (1,), 0, cache_dtype(self.cfg))
        params = self.policy(layout, self.scale)

        def array(*shape: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(shape, dtype, sharding=layout.replicated)

        tokens = array(layout.fill(work.prompts), work.prompt_len)
        keys = array(work.rows, dtype=jax.eval_shape(jax.random.key, 0).dtype)
        inputs = (tokens, tokens, array(work.rows), keys, array(work.rows, dtype=jnp.bool_), None)
        sizes = work.cache_sizes
        run = jax.jit(programs.prefill, static_argnames=("slots", "sampling"))
        lower = partial(run.lower, params, *inputs, slots=sizes[0], sampling=sampling)
        flops = forward_flops(model, work.prompts, work.prompt_len, 1)
        parts: dict[str, Any] = {"parameters": params, "inputs": inputs}
        prefill, compiled = compile_program("prefill", layout, lower, parts, flops, work.batches)
        if compiled is None:
            return [prefill]
        shardings = compiled.output_shardings

        def state(slots: int) -> DecodeState:
            shapes = jax.eval_shape(partial(programs.prefill, slots=slots, sampling=sampling), params, *inputs)
            return jax.tree.map(_with_sharding, shapes, shardings)

        made = [name_part(prefill, kv_cache=tree_bytes(state(sizes[0]).cache))]
        if len(sizes) > 1:
            before = state(sizes[-2])
            run = jax.jit(programs.reshape, static_argnames="slots")
            lower = partial(run.lower, before, None, slots=sizes[-1])
            parts = {"parameters": (), "kv_cache": before.cache, "inputs": _without_cache(before)}
            grow, compiled = compile_program("grow", layout, lower, parts, 0, work.batches * (len(sizes) - 1))
            made.append(grow)
            if compiled is None:
                return made
            shardings = compiled.output_shardings
        last = state(sizes[-1])
        run = jax.jit(programs.decode, static_argnames="sampling", donate_argnames="state")
        lower = partial(run.lower, params, last, array(), array(), sampling=sampling)
        flops = forward_flops(model, work.rows, work.new_tokens, work.new_tokens, before=work.prompt_len)
        parts = {"parameters": params, "kv_cache": last.cache, "inputs": _without_cache(last)}
        return [*made, compile_program("decode", layout, lower, parts, flops, work.batches)[0]]

    def reference(self) -> list[Program]:
        """Logprobs under the frozen reference; nothing where no KL is asked for."""
        if not self.cfg.rl.kl_coef:
            return []
        work, layout = self.work, self.layouts.reference
        model = replace(self.model, place=layout)
        program = make_logprob_program(model.forward, model.unembed, layout).run
        if resolve_reference(self.cfg) == "lora_base":
            params = self.policy(layout, 0.0)
        else:
            params = abstract_params(model.specs, self.dtype, layout.sharding_for)
        completions = work.prompts * work.group
        _, rows = step_sizes(self.cfg.rl, completions, layout)
        rows = layout.fill(work.micro_rows) if self.cfg.rl.micro_batch_tokens else rows
        inputs = self._rows(rows, layout)
        flops = forward_flops(self.model, rows, work.length, work.new_tokens)
        calls = math.ceil(completions / rows) * work.batches
        parts = {"parameters": params, "inputs": inputs}
        return [compile_program("reference", layout, partial(_lower, program, params, inputs), parts, flops, calls)[0]]

    def train(self) -> Program:
        """The gradient of a micro-batch and the optimizer step, here as one program; flops are those of all of them."""
        work, layout, rl = self.work, self.layouts.policy, self.cfg.rl
        model, optimizer = replace(self.model, place=layout), make_optimizer(rl)
        trained, frozen = self.trained(layout), self.frozen(layout)
        state = abstract_train_state(trained, optimizer, layout.replicated)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
        programs = make_programs(
            model.forward, model.unembed, optimizer, rl, work.new_tokens, self.scale, layout, shardings
        )
        batch = self._micro_batch(layout)
        names = sum_names(with_reference=batch.ref_logp is not None, with_sampler=True)

        @partial(jax.jit, donate_argnums=0, out_shardings=(shardings, layout.replicated))
        def step(state: TrainState, frozen: Params | None, batch: MicroBatch) -> tuple[TrainState, dict[str, Any]]:
            nothing = programs.start(state.params, names)
            return programs.apply(state, programs.accumulate(state.params, frozen, nothing, batch))

        flops = train_flops(
            self.model, work.micro_batches * work.micro_rows, work.length, work.new_tokens, self.adapters
        )
        parts = {"parameters": (trained, frozen), "optimizer": state.opt_state, "inputs": batch}
        program, _ = compile_program(
            "train", layout, partial(_lower, step, state, frozen, batch), parts, flops, work.steps
        )
        gradients = tree_bytes(jax.tree.map(lambda p: _with_dtype(p, jnp.float32), trained))
        return name_part(program, gradients=gradients)

    def _rows(self, rows: int, layout: Layout) -> Rows:
        def array(columns: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((rows, columns), dtype, sharding=layout.rows())

        tokens, slots = array(self.work.length), array(self.work.new_tokens)
        return Rows(tokens, tokens, None, slots, slots, array(self.work.new_tokens, jnp.bool_))

    def _micro_batch(self, layout: Layout) -> MicroBatch:
        rows = self._rows(self.work.micro_rows, layout)
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
