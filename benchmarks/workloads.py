"""The work that every system is given: two models, and draws of prompts and completion lengths."""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

PAD, EOS, BOS, UNK = range(4)
GROUP_SIZE = 8
MICRO_ROWS = 8  # completions in one forward and backward pass of the peers, which count rows
MICRO_TOKENS = 2048  # in one of ours, which counts tokens: what 8 rows of the translation workload come to, padded
TEMPERATURE, TOP_K, TOP_P = 0.8, 50, 0.95
LEARNING_RATE, WEIGHT_DECAY, KL_COEF, CLIP_EPS, MAX_GRAD_NORM = 1e-6, 0.01, 0.04, 0.2, 1.0

INSTRUCTION_TOKENS, MAX_PROMPT = 50, 512
MEAN_PROMPT, MEAN_COMPLETION, MAX_COMPLETION = 150, 50, 256


@dataclass(frozen=True)
class ModelSize:
    """A Gemma 3 text model: float32, tied embeddings, a window of 256, one global layer in six."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocab: int
    prompts: int  # of one update

    @property
    def matrices(self) -> list[tuple[int, int]]:
        """[out, in] of one layer's products: q with k and v, attention's output, gate with up, down."""
        attention = self.heads * self.head_dim
        qkv = (self.heads + 2 * self.kv_heads) * self.head_dim
        return [(qkv, self.hidden), (self.hidden, attention), (2 * self.mlp, self.hidden), (self.hidden, self.mlp)]

    @property
    def body_params(self) -> int:
        """Weights that every token is multiplied with: all but embedding and head."""
        return self.layers * sum(rows * columns for rows, columns in self.matrices)

    @property
    def head_params(self) -> int:
        return self.vocab * self.hidden


MODELS = {
    "36m": ModelSize(8, 512, 8, 4, 64, 2048, 8192, prompts=8),
    "129m": ModelSize(12, 768, 12, 4, 64, 3072, 32768, prompts=4),
    "36m-v262k": ModelSize(8, 512, 8, 4, 64, 2048, 262144, prompts=1),  # for the memory of the train step alone
}
SIGMAS = {"translation-0.6": 0.6, "translation-0.9": 0.9}
WORKLOADS = ("fixed", *SIGMAS)


@dataclass(frozen=True)
class Draw:
    """One update's work. Row r is a completion of prompt r // GROUP_SIZE."""

    prompts: list[list[int]]
    lengths: np.ndarray  # [rows] int: tokens of each completion, the end token included
    max_new_tokens: int

    @property
    def rows(self) -> list[list[int]]:
        """The prompt of each completion."""
        return [prompt for prompt in self.prompts for _ in range(GROUP_SIZE)]


def draw(workload: str, model: ModelSize, seed: int = 0) -> Draw:
    """*fixed*: prompts of 64 tokens, completions of 64.

    *translation-S*: prompts of mean 150, 50 of them an instruction and the rest log-normal; completions log-normal of
    mean 50, cut at 256; S is the sigma of both. The lengths are the quantiles (i + 1/2) / n in random order: a draw of
    a few rows has the shape of the whole distribution, not of a lucky sample.
    """
    rng = np.random.default_rng(seed)
    rows = model.prompts * GROUP_SIZE
    if workload == "fixed":
        prompt_lengths, lengths, longest = np.full(model.prompts, 64), np.full(rows, 64), 64
    else:
        sigma, longest = SIGMAS[workload], MAX_COMPLETION
        source = log_normal(rng, MEAN_PROMPT - INSTRUCTION_TOKENS, sigma, model.prompts)
        prompt_lengths = np.minimum(INSTRUCTION_TOKENS + source, MAX_PROMPT)
        lengths = np.clip(log_normal(rng, MEAN_COMPLETION, sigma, rows), 2, longest)
    prompts = [rng.integers(UNK + 1, model.vocab, n).tolist() for n in prompt_lengths]
    return Draw(prompts, lengths, longest)


def log_normal(rng: np.random.Generator, mean: float, sigma: float, count: int) -> np.ndarray:
    """[count] int: stratified quantiles of the log-normal of this mean, shuffled."""
    z = np.array([NormalDist().inv_cdf((i + 0.5) / count) for i in range(count)])
    return rng.permutation(np.rint(mean * np.exp(sigma * z - sigma**2 / 2)).astype(int))


def check_rows(model: ModelSize, seed: int = 1) -> list[tuple[list[int], list[int]]]:
    """Prompts and completions of unlike lengths, whose logprobs all systems must agree on."""
    rng = np.random.default_rng(seed)

    def ids(length: int) -> list[int]:
        return rng.integers(UNK + 1, model.vocab, length).tolist()

    return [(ids(n), ids(m)) for n, m in zip((5, 17, 40, 64, 9, 33, 64, 50), (30, 64, 2, 17, 64, 40, 9, 25))]


def reward(completion: list[int]) -> float:
    """The same trivial reward for all: the share of even ids."""
    return sum(token % 2 == 0 for token in completion) / max(len(completion), 1)


def text_of(ids: list[int]) -> str:
    """For systems that take texts: the folder's tokenizer reads `t17 t4` as 17, 4."""
    return " ".join(f"t{token}" for token in ids)


def ids_of(text: str) -> list[int]:
    return [int(word[1:]) for word in text.split() if word.startswith("t")]
