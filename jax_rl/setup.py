"""From a config to the parts of a run: tokenizer, prompts, models on their devices, rollout engine, scorer.

Cheap checks come first, so that a mistake shows in seconds: devices and data before weights, weights beside the
workers' start. Nothing is written to the output folder before `open_run` has read everything it needs.
"""

import logging
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jax_rl.checkpoints import read_meta
from jax_rl.config import Config, resolve_reference
from jax_rl.config.schema import RewardConfig
from jax_rl.data.examples import Split, load_examples
from jax_rl.data.prompts import Prompt, encode_prompts
from jax_rl.errors import UserError
from jax_rl.learning.programs import LogprobProgram, make_logprob_program
from jax_rl.models.hf_checkpoint import HFCheckpoint, open_checkpoint
from jax_rl.models.hub import resolve_model_folder
from jax_rl.models.lora import adapter_specs, init_adapters, policy_weights
from jax_rl.models.params import Params, Specs, count_params
from jax_rl.models.registry import Model
from jax_rl.parallel.cluster import find_cluster
from jax_rl.parallel.devices import place_models
from jax_rl.parallel.layouts import Layouts, make_layouts, make_transfer, placement_table
from jax_rl.parallel.multihost import Hosts, describe_failure, join_hosts, require_whole_run
from jax_rl.parallel.seats import Seats, claim
from jax_rl.parallel.sharding import Layout
from jax_rl.rewards.scoring import build_scorer
from jax_rl.rewards.shared import AnyScorer, SharedScorer
from jax_rl.rollout.engine import RolloutEngine
from jax_rl.rollout.sampling import SamplingParams
from jax_rl.tokens.tokenizer import Tokenizer

log = logging.getLogger(__name__)

ADAPTER_STREAM = 0x7FFFFFFE  # of the run's seed: beside those of sampling


@dataclass(frozen=True)
class Run:
    """Everything a run works with that training does not change."""

    cfg: Config
    hosts: Hosts
    output_dir: Path
    tokenizer: Tokenizer
    model: Model  # as it runs on the policy's mesh
    layouts: Layouts
    policy_folder: Path  # the supervised starting point
    trained_specs: Specs  # of what training changes: all weights, or adapters
    trained_dtype: DTypeLike
    load_trained: Callable[[], Params]  # what training starts with: the policy's weights, or fresh adapters of `frozen`
    frozen: Params | None  # the policy's weights under LoRA, else None
    lora_scale: float  # alpha / rank
    to_rollout: Callable[[Params], Params]  # what is trained, on the rollout's mesh
    rollout_frozen: Params | None  # `frozen` on the rollout's mesh
    reference_logprobs: LogprobProgram
    reference: Params | None  # weights of the frozen reference; None under LoRA's base, or when no KL is asked for
    engine: RolloutEngine
    scorer: AnyScorer  # perhaps still loading
    train_prompts: list[Prompt]
    eval_prompts: list[Prompt]

    def policy(self, trained: Params) -> Params:
        """The policy as `Model.forward` takes it."""
        return policy_weights(trained, self.frozen, self.lora_scale)

    def rollout_policy(self, trained: Params) -> Params:
        """The policy on the rollout's mesh: a second copy of the weights, unless the two meshes hold them alike."""
        return policy_weights(self.to_rollout(trained), self.rollout_frozen, self.lora_scale)

    def reference_policy(self, trained: Params) -> Params | None:
        """The frozen reference likewise: weights of its own, or the policy with its adapters off. None without KL."""
        if self.reference is not None or self.frozen is None or not self.cfg.rl.kl_coef:
            return self.reference
        return policy_weights(trained, self.frozen, scale=0.0)


@contextmanager
def open_run(cfg: Config, *, training: bool = True) -> Iterator[Run]:
    """Builds the parts, starts the workers, and closes them whatever happens.

    Raises:
        UserError: devices, data, checkpoints or prompts are not what they must be.
    """
    seats = claim(cfg)
    configure_jax(cfg)
    configure_hub(cfg)
    hosts = join_hosts(
        find_cluster(os.environ),
        timeout_sec=cfg.misc.host_timeout_sec,
        heartbeat_sec=cfg.misc.heartbeat_timeout_sec,
        devices=len(seats.trainer) or None,
    )
    if not hosts.is_first:
        logging.getLogger().setLevel(logging.WARNING)  # what all hosts would say, the first one says
    try:
        with _open_parts(cfg, seats, hosts, training) as run:
            yield run
    except BaseException as error:
        if hosts.count > 1:
            if not isinstance(error, UserError):
                hosts.leave_if_told()
                traceback.print_exc()
            message = describe_failure(error)
            log.error("%s ends the run on all hosts: %s", hosts.name, message)
            hosts.end_all(message, code=2 if isinstance(error, UserError) else 1)
        raise


@contextmanager
def _open_parts(cfg: Config, seats: Seats, hosts: Hosts, training: bool) -> Iterator[Run]:
    require_whole_run(hosts)
    placement = place_models(cfg, seats)
    if cfg.logging.resume_from_checkpoint:
        read_meta(Path(cfg.logging.resume_from_checkpoint))
    policy_folder = _folder(cfg, cfg.model.policy_name_or_path)
    tokenizer = Tokenizer.load(_folder(cfg, cfg.model.tokenizer_name_or_path or str(policy_folder)))
    train_prompts = _prompts(cfg, tokenizer, "train") if training else []
    if training and len(train_prompts) < cfg.rl.batch_size:
        raise UserError(
            f"rl.batch_size is {cfg.rl.batch_size}, but there are only {len(train_prompts)} training prompts"
        )
    eval_prompts = _prompts(cfg, tokenizer, "eval")
    checkpoint = open_checkpoint(policy_folder)
    _require_known_ids(tokenizer, [*train_prompts, *eval_prompts], checkpoint.model.cfg.vocab_size)
    layouts = make_layouts(cfg, placement, checkpoint.model)
    adapters = _adapters(cfg, checkpoint.model)
    output_dir = Path(cfg.logging.output_dir)
    dtype = jnp.dtype(cfg.misc.dtype)
    # each host's workers have a log and a cache of their own: SQLite over a network is for one writer
    scoring_dir = output_dir if hosts.count == 1 else output_dir / f"host-{hosts.index}"
    scorer = build_scorer(_seated(cfg.reward, seats), scoring_dir)  # the workers load beside the policy
    try:
        reference = _load_reference(cfg, checkpoint, layouts.reference) if training else None
        _log_placement(cfg, seats, layouts, checkpoint.model, reference is not None)
        load_policy = partial(checkpoint.load, dtype, layouts.policy.sharding_for)
        frozen = None if adapters is None else load_policy()
        to_rollout = partial(make_transfer, source=layouts.policy, target=layouts.rollout)
        policy, rollout, referee = (
            replace(checkpoint.model, place=layout) for layout in (layouts.policy, layouts.rollout, layouts.reference)
        )
        yield Run(
            cfg=cfg,
            hosts=hosts,
            output_dir=output_dir,
            tokenizer=tokenizer,
            model=policy,
            layouts=layouts,
            policy_folder=policy_folder,
            trained_specs=policy.specs if adapters is None else adapters,
            trained_dtype=dtype if adapters is None else jnp.float32,
            load_trained=load_policy if adapters is None else partial(_init_adapters, cfg, adapters, layouts.policy),
            frozen=frozen,
            lora_scale=cfg.model.lora.alpha / cfg.model.lora.rank,
            to_rollout=to_rollout(policy.specs if adapters is None else adapters),
            rollout_frozen=None if frozen is None else to_rollout(policy.specs)(frozen),
            reference_logprobs=make_logprob_program(
                referee.forward,
                referee.unembed,
                layouts.reference,
                shares_prompts=policy.shares_prompts,
                name="reference_logprobs",
            ),
            reference=reference,
            engine=RolloutEngine(
                rollout,
                cfg.generation.max_new_tokens,
                tokenizer.eos_ids,
                tokenizer.pad_id,
                cache_dtype(cfg),
                row_multiple=layouts.rollout.row_count,
            ),
            scorer=scorer if hosts.count == 1 else SharedScorer(scorer, hosts.gather, hosts.own_rows),
            train_prompts=train_prompts,
            eval_prompts=eval_prompts,
        )
    finally:
        scorer.close()


def configure_hub(cfg: Config) -> None:
    """Hugging Face's own variables, for models, data sets and the workers, which inherit them."""
    token = cfg.misc.huggingface_token or os.environ.get(cfg.misc.huggingface_token_env)
    if token:
        os.environ["HF_TOKEN"] = token
    if cfg.misc.huggingface_cache_dir:
        os.environ["HF_HUB_CACHE"] = cfg.misc.huggingface_cache_dir
        os.environ["HF_DATASETS_CACHE"] = str(Path(cfg.misc.huggingface_cache_dir) / "datasets")


def configure_jax(cfg: Config) -> None:
    """Settings that must be made before the first array: the backend and the cache of compiled programs."""
    if cfg.misc.device == "cpu":
        jax.config.update("jax_platforms", "cpu")
    if cfg.misc.cpu_devices:
        jax.config.update("jax_num_cpu_devices", cfg.misc.cpu_devices)
    if cfg.misc.dtype == "float32":
        jax.config.update("jax_default_matmul_precision", "highest")  # else a GPU would round the factors to TF32
    cache = Path(cfg.misc.compilation_cache_dir or Path.home() / ".cache" / "jax_rl" / "programs")
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    # names are no part of a program, so that one in the cache may have been compiled with others or with none
    jax.config.update("jax_compilation_cache_include_metadata_in_key", bool(cfg.misc.profile_updates))


def training_sampling(cfg: Config) -> SamplingParams:
    """How the completions of an update are drawn."""
    g = cfg.generation
    return SamplingParams.of(g.temperature if g.do_sample else 0.0, g.top_k, g.top_p, g.repetition_penalty)


def evaluation_sampling(cfg: Config, temperature: float) -> SamplingParams:
    """How those of an evaluation are drawn: nothing is cut off."""
    return SamplingParams.of(temperature, repetition_penalty=cfg.generation.repetition_penalty)


def cache_dtype(cfg: Config) -> jnp.dtype:
    """Of the keys and values that decoding remembers."""
    name = cfg.generation.kv_cache_dtype
    return jnp.dtype(cfg.misc.dtype if name == "auto" else name)


def _seated(reward: RewardConfig, seats: Seats) -> RewardConfig:
    """The config with the device that each metric was given."""
    devices = {name: replace(getattr(reward, name), device=device) for name, device in seats.metrics.items()}
    return replace(reward, **devices)


def _log_placement(cfg: Config, seats: Seats, layouts: Layouts, model: Model, has_reference: bool) -> None:
    for line in placement_table(layouts, model.specs, cfg.misc.dtype, has_reference, seats.metrics):
        log.info("%s", line)
    for note in seats.notes:
        log.warning("%s", note)


def _folder(cfg: Config, name: str | None) -> Path:
    if name is None:
        raise UserError("model.policy_name_or_path is not set; it must be a Hugging Face folder or hub name")
    return resolve_model_folder(name, cfg.misc.huggingface_cache_dir, cfg.misc.huggingface_token)


def _prompts(cfg: Config, tokenizer: Tokenizer, split: Split) -> list[Prompt]:
    examples = load_examples(cfg.data, split, cfg.eval.eval_limit if split == "eval" else None)  # data.limit is its own
    return encode_prompts(
        tokenizer,
        examples,
        cfg.prompt.template,
        cfg.generation.chat_template_kwargs,
        cfg.data.max_prompt_tokens,
        cfg.data.overlong_prompt_policy,
    )


def _require_known_ids(tokenizer: Tokenizer, prompts: list[Prompt], vocab: int) -> None:
    """A lookup past the table gives its last row, without a word."""
    highest = max([*tokenizer.eos_ids, *(max(prompt.token_ids) for prompt in prompts)])
    if highest >= vocab:
        raise UserError(
            f"the tokenizer in {tokenizer.folder} gives id {highest}, but the policy's vocabulary ends at {vocab - 1}; "
            "model.tokenizer_name_or_path must be a tokenizer of model.policy_name_or_path"
        )


def _adapters(cfg: Config, model: Model) -> Specs | None:
    lora = cfg.model.lora
    if not lora.enabled:
        return None
    specs = adapter_specs(model.specs, lora.rank, lora.target_modules)
    log.info("LoRA: %.3g of %.3g parameters are trained", count_params(specs), count_params(model.specs))
    return specs


def _init_adapters(cfg: Config, specs: Specs, layout: Layout) -> Params:
    key = jax.random.fold_in(jax.random.key(cfg.misc.seed), ADAPTER_STREAM)
    return init_adapters(specs, key, layout.sharding_for)


def _load_reference(cfg: Config, policy: HFCheckpoint, layout: Layout) -> Params | None:
    if not cfg.rl.kl_coef or resolve_reference(cfg) == "lora_base":
        return None
    name = cfg.model.reference_name_or_path
    checkpoint = policy if name is None else open_checkpoint(_folder(cfg, name))
    if checkpoint.model != policy.model:
        raise UserError(f"model.reference_name_or_path {name!r} is not the same architecture as the policy")
    log.info("reference: %.3g parameters", count_params(checkpoint.model.specs))
    return checkpoint.load(jnp.dtype(cfg.misc.dtype), layout.sharding_for)
