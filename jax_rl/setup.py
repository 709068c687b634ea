"""From a config to the parts of a run: tokenizer, prompts, models on their devices, rollout engine, scorer.

Cheap checks come first, so that a mistake shows in seconds: devices and data before weights, weights beside the
workers' start. Nothing is written to the output folder before `open_run` has read everything it needs.
"""

import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from jax_rl.checkpoints import read_meta
from jax_rl.config import Config, resolve_reference
from jax_rl.data.examples import Split, load_examples
from jax_rl.data.prompts import Prompt, encode_prompts
from jax_rl.errors import UserError
from jax_rl.models.hf_checkpoint import HFCheckpoint, open_checkpoint
from jax_rl.models.hub import resolve_model_folder
from jax_rl.models.lora import adapter_specs, init_adapters, policy_weights
from jax_rl.models.params import Params, Specs, count_params
from jax_rl.models.registry import Model
from jax_rl.parallel.devices import Placement, place_models
from jax_rl.rewards.scoring import Scorer, build_scorer
from jax_rl.rollout.engine import RolloutEngine
from jax_rl.rollout.sampling import SamplingParams
from jax_rl.tokens.tokenizer import Tokenizer

log = logging.getLogger(__name__)

ADAPTER_STREAM = 0x7FFFFFFE  # of the run's seed: beside those of sampling


@dataclass(frozen=True)
class Run:
    """Everything a run works with that training does not change."""

    cfg: Config
    output_dir: Path
    tokenizer: Tokenizer
    model: Model
    policy_folder: Path  # the supervised starting point
    load_trained: Callable[[], Params]  # what training starts with: the policy's weights, or fresh adapters of `frozen`
    frozen: Params | None  # the policy's weights under LoRA, else None
    lora_scale: float  # alpha / rank
    reference: Params | None  # weights of the frozen reference; None under LoRA's base, or when no KL is asked for
    engine: RolloutEngine
    scorer: Scorer
    train_prompts: list[Prompt]
    eval_prompts: list[Prompt]

    def policy(self, trained: Params) -> Params:
        """The policy as `Model.forward` takes it."""
        return policy_weights(trained, self.frozen, self.lora_scale)

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
    configure_jax(cfg)
    configure_hub(cfg)
    placement = _place(cfg)
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
    adapters = _adapters(cfg, checkpoint.model)
    output_dir = Path(cfg.logging.output_dir)
    dtype = jnp.dtype(cfg.misc.dtype)
    with ThreadPoolExecutor(max_workers=1) as background:
        starting = background.submit(build_scorer, cfg.reward, output_dir)
        try:
            reference = _load_reference(cfg, checkpoint, placement) if training else None
            load_policy = partial(checkpoint.load, dtype, on_device(placement.policy))
            yield Run(
                cfg=cfg,
                output_dir=output_dir,
                tokenizer=tokenizer,
                model=checkpoint.model,
                policy_folder=policy_folder,
                load_trained=load_policy if adapters is None else partial(_init_adapters, cfg, adapters, placement),
                frozen=None if adapters is None else load_policy(),
                lora_scale=cfg.model.lora.alpha / cfg.model.lora.rank,
                reference=reference,
                engine=RolloutEngine(
                    checkpoint.model, cfg.generation.max_new_tokens, tokenizer.eos_ids, tokenizer.pad_id, dtype
                ),
                scorer=starting.result(),
                train_prompts=train_prompts,
                eval_prompts=eval_prompts,
            )
        finally:
            if starting.exception() is None:
                starting.result().close()


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
    if cfg.misc.dtype == "float32":
        jax.config.update("jax_default_matmul_precision", "highest")  # else a GPU would round the factors to TF32
    cache = Path(cfg.misc.compilation_cache_dir or Path.home() / ".cache" / "jax_rl" / "programs")
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def training_sampling(cfg: Config) -> SamplingParams:
    """How the completions of an update are drawn."""
    g = cfg.generation
    return SamplingParams(g.temperature if g.do_sample else 0.0, g.top_k, g.top_p, g.repetition_penalty)


def on_device(devices: tuple[jax.Device, ...]):
    """The sharding of every parameter on these devices."""
    sharding = SingleDeviceSharding(devices[0])
    return lambda spec: sharding


def _place(cfg: Config) -> Placement:
    model = cfg.model
    placement = place_models(cfg.misc.device, model.policy_gpu_ids, model.reference_gpu_ids, model.reference_device)
    for name, devices in (("policy", placement.policy), ("reference", placement.reference)):
        if len(devices) > 1:
            raise UserError(f"model.{name}_gpu_ids names {len(devices)} devices; this version runs each model on one")
    log.info("policy on %s, reference on %s", placement.policy[0], placement.reference[0])
    return placement


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


def _adapters(cfg: Config, model: Model) -> Specs | None:
    lora = cfg.model.lora
    if not lora.enabled:
        return None
    specs = adapter_specs(model.specs, lora.rank, lora.target_modules)
    log.info("LoRA: %.3g of %.3g parameters are trained", count_params(specs), count_params(model.specs))
    return specs


def _init_adapters(cfg: Config, specs: Specs, placement: Placement) -> Params:
    key = jax.random.fold_in(jax.random.key(cfg.misc.seed), ADAPTER_STREAM)
    return init_adapters(specs, key, on_device(placement.policy))


def _load_reference(cfg: Config, policy: HFCheckpoint, placement: Placement) -> Params | None:
    if not cfg.rl.kl_coef or resolve_reference(cfg) == "lora_base":
        return None
    name = cfg.model.reference_name_or_path
    checkpoint = policy if name is None else open_checkpoint(_folder(cfg, name))
    if checkpoint.model != policy.model:
        raise UserError(f"model.reference_name_or_path {name!r} is not the same architecture as the policy")
    log.info("reference: %.3g parameters", count_params(checkpoint.model.specs))
    return checkpoint.load(jnp.dtype(cfg.misc.dtype), on_device(placement.reference))
