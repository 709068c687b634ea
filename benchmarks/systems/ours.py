"""jax_rl: a run opened as training opens it, its updates made of the trainer's own two parts.

Two things are not a user's: the engine is told how long completions are, and the only metric is the trivial reward.
"""

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np

from benchmarks.clock import Clock, Phases
from benchmarks.workloads import (
    CLIP_EPS,
    GROUP_SIZE,
    KL_COEF,
    LEARNING_RATE,
    MAX_GRAD_NORM,
    MICRO_TOKENS,
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
from jax_rl.config import Config
from jax_rl.config.schema import (
    DataConfig,
    GenerationConfig,
    LoggingConfig,
    MetricXConfig,
    MiscConfig,
    ModelConfig,
    PromptConfig,
    RewardConfig,
    RLConfig,
    XCometConfig,
)
from jax_rl.experience import collect_experience
from jax_rl.learning.optimizer import init_train_state, make_optimizer
from jax_rl.learning.update import batched_logprobs, packing_of, run_update
from jax_rl.rewards.scoring import Scorer
from jax_rl.rewards.types import Scored, Translation
from jax_rl.runlog.timing import PhaseClock
from jax_rl.setup import open_run
from jax_rl.start import abstract_state, shardings_of
from jax_rl.trainer import make_run_programs


def versions() -> dict[str, str]:
    return {name: version(name) for name in ("jax", "jaxlib", "flax", "optax")}


class EvenShare:
    """The trivial reward, as a metric."""

    name, identity = "chrf", "even share"

    def score(self, batch: Sequence[Translation]) -> list[Scored]:
        return [Scored(reward(ids_of(translation.mt))) for translation in batch]

    def close(self) -> None:
        pass


class MeasuringClock(PhaseClock):
    """The trainer's clock, whose phases are also measured as those of the other systems are."""

    def __init__(self) -> None:
        super().__init__()
        self.measured = Clock()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        with self.measured.phase(name), super().phase(name):
            yield


class System:
    def __init__(self, folder: Path, size: ModelSize, draw: Draw, metric=None, **changes) -> None:
        """`changes`: of the config's values, as section__key."""
        self.draw = draw
        cfg = _config(folder, draw)
        for name, value in changes.items():
            section, key = name.split("__")
            cfg = replace(cfg, **{section: replace(getattr(cfg, section), **{key: value})})
        run = ExitStack().enter_context(open_run(cfg))
        self.run = replace(run, scorer=Scorer([metric or EvenShare()], None, cfg.reward))
        self._force_lengths()
        optimizer = make_optimizer(cfg.rl)
        self.programs = make_run_programs(run, optimizer)
        shardings = shardings_of(abstract_state(run, optimizer, run.layouts.policy))
        self.state = init_train_state(run.load_trained(), optimizer, shardings)
        self.updates = 0

    def _force_lengths(self) -> None:
        groups = self.draw.lengths.reshape(-1, GROUP_SIZE)
        lengths_of = {tuple(prompt): lengths for prompt, lengths in zip(self.draw.prompts, groups)}
        generate = self.run.engine.generate

        def forced(params, prompts, *args):
            lengths = np.concatenate([lengths_of[tuple(prompt)] for prompt in prompts])
            return generate(params, prompts, *args, forced_lengths=lengths)

        self.run.engine.generate = forced

    def logprobs(self, rows: list[tuple[list[int], list[int]]]) -> dict[str, list[list[float]]]:
        width = max(len(prompt) for prompt, _ in rows)
        longest = max(len(completion) for _, completion in rows)
        tokens = np.array([[PAD] * (width - len(p)) + p + c + [PAD] * (longest - len(c)) for p, c in rows], np.int32)
        real = tokens != PAD
        positions = np.where(real, real.cumsum(1) - 1, -1).astype(np.int32)
        program, params = self.run.reference_logprobs, self.run.reference_policy(self.state.params)
        packing = packing_of(self.run.cfg.rl, len(rows), program)
        logp = batched_logprobs(program, params, tokens, positions, real[:, width:], packing)
        return {"1.0": [values[: len(c)].tolist() for values, (_, c) in zip(logp, rows)]}

    def update(self) -> Phases:
        clock = MeasuringClock()
        self.updates += 1
        with clock.phase("update"):
            experience = collect_experience(self.run, self.state.params, self.updates, clock)
            with clock.phase("train"):
                self.state, _ = run_update(
                    self.state, experience.update_batch(), self.programs, self.run.cfg.rl, self.run.frozen
                )
        assert sorted(experience.batch.mask.sum(1)) == sorted(self.draw.lengths)
        return clock.measured.phases


def _config(folder: Path, draw: Draw) -> Config:
    work = Path(tempfile.mkdtemp(prefix="bench-ours-"))
    examples = work / "examples.jsonl"
    rows = [{"id": str(i), "src_text": text_of(prompt), "ref_text": ""} for i, prompt in enumerate(draw.prompts)]
    examples.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Config(
        model=ModelConfig(policy_name_or_path=str(folder)),
        data=DataConfig(train_file=str(examples), eval_file=str(examples)),
        prompt=PromptConfig(template="{text}"),
        generation=GenerationConfig(
            max_new_tokens=draw.max_new_tokens,
            temperature=TEMPERATURE,
            top_k=TOP_K,
            top_p=TOP_P,
            num_samples_per_prompt=GROUP_SIZE,
        ),
        reward=RewardConfig(
            w_metricx=0.0,
            w_chrf=1.0,
            cache_enabled=False,
            metricx=MetricXConfig(enabled=False),
            xcomet=XCometConfig(enabled=False),
        ),
        rl=RLConfig(
            lr=LEARNING_RATE,
            weight_decay=WEIGHT_DECAY,
            batch_size=len(draw.prompts),
            grad_accum=0,
            micro_batch_tokens=MICRO_TOKENS,
            remat="minimal",
            clip_eps=CLIP_EPS,
            kl_coef=KL_COEF,
            max_grad_norm=MAX_GRAD_NORM,
        ),
        logging=LoggingConfig(output_dir=str(work / "run"), tensorboard=False),
        misc=MiscConfig(
            device="cpu", dtype="float32", compilation_cache_dir=os.environ.get("JAX_COMPILATION_CACHE_DIR")
        ),
    )
