"""transformers: `generate`, and the GRPO loss as one writes it by hand in PyTorch.

Groups are micro-batches, so no prompt is padded, and each micro-batch is as long as its own longest completion.
"""

import os
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, LogitsProcessor, LogitsProcessorList

from benchmarks.clock import Clock, Phases
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
    reward,
)

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def versions() -> dict[str, str]:
    return {"torch": torch.__version__, "transformers": transformers.__version__}


class ForcedEnd(LogitsProcessor):
    """Ends row r with its `lengths[r]`-th token, neither earlier nor later."""

    def __init__(self, lengths, prompt_len: int) -> None:
        self.lengths, self.prompt_len = torch.as_tensor(lengths), prompt_len

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.index_fill(1, torch.tensor([PAD, EOS]), -torch.inf)
        ends = self.lengths == input_ids.shape[1] - self.prompt_len + 1
        scores[ends] = -torch.inf
        scores[ends, EOS] = 0.0
        return scores


class System:
    def __init__(self, folder: Path, size: ModelSize, draw: Draw) -> None:
        self.draw = draw
        self.policy = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        parameters = self.policy.parameters()
        self.optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)

    @torch.no_grad()
    def logprobs(self, rows: list[tuple[list[int], list[int]]]) -> dict[str, list[list[float]]]:
        def at(temperature: float) -> list[list[float]]:
            logp, mask = row_logprobs(self.reference, rows, temperature)
            return [values[keep].tolist() for values, keep in zip(logp, mask)]

        return {str(temperature): at(temperature) for temperature in (1.0, TEMPERATURE)}

    def update(self) -> Phases:
        clock = Clock()
        with clock.phase("update"):
            with clock.phase("rollout"):
                completions = self._rollout()
            assert [len(c) for c in completions] == self.draw.lengths.tolist()
            advantages = _advantages(completions)
            rows = list(zip(self.draw.rows, completions))
            batches = [rows[i : i + MICRO_ROWS] for i in range(0, len(rows), MICRO_ROWS)]
            with clock.phase("reference"), torch.no_grad():
                reference = [row_logprobs(self.reference, batch)[0] for batch in batches]
            with clock.phase("train"):
                self._train(batches, reference, advantages.split(MICRO_ROWS))
        return clock.phases

    @torch.no_grad()
    def _rollout(self) -> list[list[int]]:
        tokens, attention = _left_pad(self.draw.rows)
        prompt_len = tokens.shape[1]
        out = self.policy.generate(
            input_ids=tokens,
            attention_mask=attention,
            logits_processor=LogitsProcessorList([ForcedEnd(self.draw.lengths, prompt_len)]),
            max_new_tokens=self.draw.max_new_tokens,
            do_sample=True,
            temperature=TEMPERATURE,
            top_k=TOP_K,
            top_p=TOP_P,
            pad_token_id=PAD,
            eos_token_id=EOS,
        )
        return [row[row != PAD].tolist() for row in out[:, prompt_len:]]

    def _train(self, batches, reference, advantages) -> None:
        rows = sum(len(batch) for batch in batches)
        for batch, ref_logp, adv in zip(batches, reference, advantages):
            logp, mask = row_logprobs(self.policy, batch)
            ratio = torch.exp(logp - logp.detach())
            clipped = ratio.clamp(1 - CLIP_EPS, 1 + CLIP_EPS)
            surrogate = -torch.minimum(ratio * adv[:, None], clipped * adv[:, None])
            kl = torch.exp(ref_logp - logp) - (ref_logp - logp) - 1
            per_row = ((surrogate + KL_COEF * kl) * mask).sum(1) / mask.sum(1)
            (per_row.sum() / rows).backward()
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), MAX_GRAD_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def row_logprobs(
    model, rows: list[tuple[list[int], list[int]]], temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """logp and mask [B, T] of the completions behind left-padded prompts."""
    prompts, attention = _left_pad([prompt for prompt, _ in rows])
    longest = max(len(completion) for _, completion in rows)
    targets = torch.tensor([completion + [PAD] * (longest - len(completion)) for _, completion in rows])
    mask = torch.arange(longest)[None] < torch.tensor([[len(completion)] for _, completion in rows])
    tokens, attention = torch.cat([prompts, targets], 1), torch.cat([attention, mask.long()], 1)
    positions = (attention.cumsum(1) - 1).clamp(min=0)
    logits = model(
        input_ids=tokens,
        attention_mask=attention,
        position_ids=positions,
        use_cache=False,
        logits_to_keep=longest + 1,
    ).logits[:, :-1]
    if temperature != 1.0:
        logits = logits / temperature
    logp = logits.gather(-1, targets[..., None])[..., 0] - torch.logsumexp(logits, -1)
    return logp * mask, mask


def _left_pad(prompts: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(len(prompt) for prompt in prompts)
    tokens = torch.tensor([[PAD] * (width - len(prompt)) + prompt for prompt in prompts])
    return tokens, (tokens != PAD).long()


def _advantages(completions: list[list[int]]) -> torch.Tensor:
    rewards = torch.tensor([reward(c) for c in completions]).reshape(-1, GROUP_SIZE)
    spread = rewards.std(1, keepdim=True) + 1e-4
    return ((rewards - rewards.mean(1, keepdim=True)) / spread).reshape(-1)
