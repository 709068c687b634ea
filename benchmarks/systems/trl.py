"""TRL's GRPOTrainer in its own training loop, one optimizer step per update.

Without gradient checkpointing, which would cost time. What is not rollout or reference counts as train.
"""

import os
import tempfile
from pathlib import Path

import torch
import transformers
import trl
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessorList, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from benchmarks.clock import Clock, Phases, with_train_as_rest
from benchmarks.stepper import Stepper
from benchmarks.systems.hf import ForcedEnd
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

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def versions() -> dict[str, str]:
    return {"torch": torch.__version__, "transformers": transformers.__version__, "trl": trl.__version__}


def even_share(completions: list[str], **_) -> list[float]:
    return [reward(ids_of(completion)) for completion in completions]


class Trainer(GRPOTrainer):
    """Tells the clock where the phases are, and gives `generate` the lengths."""

    clock = Clock()

    def _generate(self, prompts):
        with self.clock.phase("rollout"):
            return super()._generate(prompts)

    def _get_per_token_logps_and_entropies(self, model, *args, **kwargs):
        if model is not self.ref_model:
            return super()._get_per_token_logps_and_entropies(model, *args, **kwargs)
        with self.clock.phase("reference"):
            return super()._get_per_token_logps_and_entropies(model, *args, **kwargs)


class Callback(TrainerCallback):
    def __init__(self, system: "System") -> None:
        self.system = system

    def on_step_begin(self, args, state, control, **_):
        self.system.stepper.wait()

    def on_step_end(self, args, state, control, **_):
        self.system.stepper.finished()


class System:
    def __init__(self, folder: Path, size: ModelSize, draw: Draw) -> None:
        self.draw = draw
        policy = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        config = GRPOConfig(
            output_dir=tempfile.mkdtemp(prefix="bench-trl-"),
            per_device_train_batch_size=MICRO_ROWS,
            gradient_accumulation_steps=len(draw.lengths) // MICRO_ROWS,
            num_generations=GROUP_SIZE,
            max_completion_length=draw.max_new_tokens,
            temperature=TEMPERATURE,
            top_k=TOP_K,
            top_p=TOP_P,
            beta=KL_COEF,
            epsilon=CLIP_EPS,
            loss_type="grpo",
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            weight_decay=WEIGHT_DECAY,
            max_grad_norm=MAX_GRAD_NORM,
            max_steps=10**6,
            shuffle_dataset=False,
            gradient_checkpointing=False,
            use_cpu=True,
            bf16=False,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        self.trainer = Trainer(
            model=policy,
            reward_funcs=even_share,
            args=config,
            train_dataset=Dataset.from_dict({"prompt": [text_of(prompt) for prompt in draw.prompts]}),
            processing_class=tokenizer,
            callbacks=[Callback(self)],
        )
        self._force_lengths(self.trainer.model)
        self.stepper = Stepper(self.trainer.train)

    def _force_lengths(self, model) -> None:
        generate = model.generate

        def forced(input_ids, **kwargs):
            processor = ForcedEnd(self.draw.lengths, input_ids.shape[1])
            out = generate(input_ids=input_ids, logits_processor=LogitsProcessorList([processor]), **kwargs)
            sampled = (out[:, input_ids.shape[1] :] != PAD).sum(1)
            assert sampled.tolist() == self.draw.lengths.tolist()
            assert (out == EOS).any(1).all()
            return out

        model.generate = forced

    @torch.no_grad()
    def logprobs(self, rows: list[tuple[list[int], list[int]]]) -> dict[str, list[list[float]]]:
        width = max(len(prompt) for prompt, _ in rows)
        longest = max(len(completion) for _, completion in rows)
        tokens = [[PAD] * (width - len(p)) + p + c + [PAD] * (longest - len(c)) for p, c in rows]
        tokens = torch.tensor(tokens)
        attention = (tokens != PAD).long()
        logp = self.trainer._get_per_token_logps_and_entropies(self.trainer.ref_model, tokens, attention, longest)[0]
        return {str(TEMPERATURE): [values[: len(c)].tolist() for values, (_, c) in zip(logp, rows)]}

    def update(self) -> Phases:
        clock = self.trainer.clock = Clock()
        with clock.phase("update"):
            self.stepper.step()
        return with_train_as_rest(clock.phases)
