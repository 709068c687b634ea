"""What both tiny metrics start from: a SentencePiece model, translation-aware embeddings, a learning-rate curve."""

import io
import math
from collections.abc import Iterable, Sequence

import numpy as np
import sentencepiece

LAYOUTS = {
    "t5": {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "pad_piece": "<pad>", "byte_fallback": True},
    "xlm-r": {"unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": -1},
}


def train_sentencepiece(texts: Iterable[str], vocab_size: int, layout: str, whole: Sequence[str] = ()) -> bytes:
    """A unigram model with the special ids of T5 or of XLM-R, as the bytes of its file.

    The strings of `whole` are never cut.
    """
    file = io.BytesIO()  # not a path, which the model would carry along
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=file, vocab_size=vocab_size, model_type="unigram",
        character_coverage=0.9995, normalization_rule_name="nmt_nfkc", num_threads=1, minloglevel=2,
        hard_vocab_limit=False, user_defined_symbols=list(whole), **LAYOUTS[layout],
    )  # fmt: skip
    return file.getvalue()


def translation_embeddings(documents: Sequence[Sequence[int]], vocab_size: int, width: int, seed: int) -> np.ndarray:
    """[vocab_size, width] start vectors of unit variance from latent semantic analysis.

    A document is the piece ids of a source and its reference together. Pieces that occur in the same documents get
    similar vectors, so a Korean piece starts near the English ones that it translates. Unseen pieces are random.
    The result is rotated at random, so that attention heads share it evenly.
    """
    rng = np.random.default_rng(seed)
    counts = np.zeros((len(documents), vocab_size))
    for row, ids in zip(counts, documents, strict=True):
        row[list(set(ids))] = 1
    counts *= np.log((len(documents) + 1) / (counts.sum(0) + 1))
    counts /= np.linalg.norm(counts, axis=1, keepdims=True) + 1e-6
    eigenvalues, vectors = np.linalg.eigh(counts @ counts.T)
    top, vectors = np.maximum(eigenvalues[-width:], 1e-9), vectors[:, -width:]
    table = (counts.T @ vectors) / top**0.25  # right singular vectors times the root of the singular values
    norms = np.linalg.norm(table, axis=1, keepdims=True)
    table = np.where(norms > 1e-6, table / np.maximum(norms, 1e-6) * math.sqrt(width), rng.normal(size=table.shape))
    rotation, _ = np.linalg.qr(rng.normal(size=(width, width)))
    return (table @ rotation).astype(np.float32)


def learning_rate_factor(step: int, steps: int, warmup: int = 50) -> float:
    """Linear warm-up, then a cosine down to 5 %."""
    return min(1.0, (step + 1) / warmup) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps)))
