"""Tunix: its sampler and its GRPO learner, in its own training loop, one optimizer step per update.

Rollout and reference end when their arrays are ready. What is neither counts as train.
"""

from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tunix.generate.sampler import Sampler
from tunix.models.gemma3.model import ModelConfig
from tunix.models.gemma3.params_safetensors import create_model_from_safe_tensors
from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner
from tunix.rl.rl_cluster import ClusterConfig, RLCluster, RLTrainingConfig, Role
from tunix.rl.rollout.base_rollout import RolloutConfig

from benchmarks.clock import Clock, Phases, with_train_as_rest
from benchmarks.stepper import Stepper
from benchmarks.workloads import (
    CLIP_EPS,
    EOS,
    GROUP_SIZE,
    KL_COEF,
    LEARNING_RATE,
    MAX_GRAD_NORM,
    MICRO_ROWS,
    PAD,
    TEMPERATURE,
    TOP_K,
    TOP_P,
    WEIGHT_DECAY,
    Draw,
    ModelSize,
    ids_of,
    reward,
    text_of,
)


def versions() -> dict[str, str]:
    return {name: version(name) for name in ("google-tunix", "jax", "jaxlib", "flax")}


class WordTokenizer:
    """`t17 t4` is 17, 4. A BOS of 0 is one that Tunix does not prepend."""

    bos_token_id = 0

    def encode(self, text: str, **_) -> list[int]:
        return ids_of(text)

    def decode(self, ids, **_) -> str:
        return text_of([int(i) for i in ids])

    def bos_id(self) -> int:
        return 0

    def eos_id(self) -> int:
        return EOS

    def pad_id(self) -> int:
        return PAD


def force_lengths(lengths: np.ndarray) -> None:
    """Every sampler ends row r with its `lengths[r]`-th token, neither earlier nor later."""
    sample = Sampler._sample

    def forced(self, logits, eos, cache, sampler_state):
        count = sampler_state.decoding_step + 2 - sampler_state.num_input_tokens  # of the token to be drawn
        ends = (jnp.asarray(lengths) == count)[:, None]
        vocab = jnp.arange(logits.shape[-1])
        last = logits[:, -1].at[:, jnp.array([PAD, EOS])].set(-jnp.inf)
        last = jnp.where(ends, jnp.where(vocab == EOS, 0.0, -jnp.inf), last)
        return sample(self, last[:, None], eos, cache, sampler_state)

    Sampler._sample = forced


class System:
    def __init__(self, folder: Path, size: ModelSize, draw: Draw) -> None:
        self.draw, self.clock = draw, Clock()
        self.mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
        config = _config(size)
        with self.mesh:
            policy, reference = (
                create_model_from_safe_tensors(str(folder), config, self.mesh, dtype=jnp.float32) for _ in range(2)
            )
        force_lengths(draw.lengths)
        self.cluster = RLCluster(
            actor=policy, reference=reference, tokenizer=WordTokenizer(), cluster_config=self._cluster_config()
        )
        self._time("generate", "rollout")
        self._time("get_ref_per_token_logps", "reference")
        learner = GRPOLearner(
            rl_cluster=self.cluster,
            algo_config=GRPOConfig(num_generations=GROUP_SIZE, num_iterations=1, beta=KL_COEF, epsilon=CLIP_EPS),
            reward_fns=lambda prompts, completions, **_: [reward(ids_of(text)) for text in completions],
        )

        def train() -> None:
            with self.mesh:
                learner.train(self._batches())

        self.stepper = Stepper(train)

    def _cluster_config(self) -> ClusterConfig:
        prompts, longest = len(self.draw.prompts), max(len(prompt) for prompt in self.draw.prompts)
        micro = MICRO_ROWS // GROUP_SIZE  # Tunix counts prompts
        training = RLTrainingConfig(
            actor_optimizer=optax.chain(
                optax.clip_by_global_norm(MAX_GRAD_NORM), optax.adamw(LEARNING_RATE, weight_decay=WEIGHT_DECAY)
            ),
            eval_every_n_steps=10**9,
            max_steps=10**6,
            mini_batch_size=prompts,
            train_micro_batch_size=micro,
            rollout_micro_batch_size=prompts,
            compute_logps_micro_batch_size=micro,
        )
        rollout = RolloutConfig(
            max_tokens_to_generate=self.draw.max_new_tokens,
            max_prompt_length=longest,
            kv_cache_size=longest + self.draw.max_new_tokens,
            temperature=TEMPERATURE,
            top_p=TOP_P,
            top_k=TOP_K,
            eos_tokens=[EOS],
        )
        roles = (Role.ACTOR, Role.REFERENCE, Role.ROLLOUT)
        return ClusterConfig(
            role_to_mesh={role: self.mesh for role in roles},
            rollout_engine="vanilla",
            training_config=training,
            rollout_config=rollout,
        )

    def _batches(self):
        prompts = np.array([text_of(prompt) for prompt in self.draw.prompts])
        while True:
            self.stepper.wait()
            yield {"prompts": prompts}
            self.stepper.finished()  # asked for the next batch: the step is made

    def _time(self, method: str, phase: str) -> None:
        inner = getattr(self.cluster, method)

        def timed(*args, **kwargs):
            with self.clock.phase(phase):
                return jax.block_until_ready(inner(*args, **kwargs))

        setattr(self.cluster, method, timed)

    def logprobs(self, rows: list[tuple[list[int], list[int]]]) -> dict[str, list[list[float]]]:
        width = max(len(prompt) for prompt, _ in rows)
        longest = max(len(completion) for _, completion in rows)
        prompts = jnp.array([[PAD] * (width - len(p)) + p for p, _ in rows])
        completions = jnp.array([c + [PAD] * (longest - len(c)) for _, c in rows])
        logp = np.asarray(self.cluster.get_ref_per_token_logps(prompts, completions, PAD, EOS))
        return {str(TEMPERATURE): [values[: len(c)].tolist() for values, (_, c) in zip(logp, rows)]}

    def update(self) -> Phases:
        self.clock = Clock()
        with self.clock.phase("update"):
            self.stepper.step()
            jax.block_until_ready(nnx.state(self.cluster.actor_trainer.model))
        return with_train_as_rest(self.clock.phases)


def _config(size: ModelSize) -> ModelConfig:
    return ModelConfig(
        num_layers=size.layers,
        num_embed=size.vocab,
        embed_dim=size.hidden,
        hidden_dim=size.mlp,
        num_heads=size.heads,
        head_dim=size.head_dim,
        num_kv_heads=size.kv_heads,
        sliding_window_size=256,
        local_base_frequency=10_000,
        global_base_frequency=1_000_000,
        param_dtype=jnp.float32,
    )
