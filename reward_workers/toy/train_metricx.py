"""Train the tiny MetricX checkpoint of the embedded default on synthetic errors (some eight minutes on one core).

    .venv-metricx/bin/python -m reward_workers.toy.train_metricx --data .cache/toy/train.jsonl --out configs/toy/metricx

The sentence loss alone stays on the plateau of a constant prediction, and what it learns first is a count of matching
words, which rewards repetition. Hence three helps, none of which is saved: word tags on the encoder (a dense signal), a
ranking loss between a translation and its damaged twins, and start values under which heads find copies, fields and
counterparts (`start_metricx`). Held out, a repeated word was seen in 96 % of cases after 250 steps with these and with
field names that are single pieces, in 60 % after 1000 without both.
"""

import argparse
import math
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import sentencepiece
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import MT5Config

from reward_workers.metricx.model import MetricXRegression
from reward_workers.metricx.tokenizer import input_text
from reward_workers.toy.damage import Mix, Sample, draw
from reward_workers.toy.errors import LOCAL, WHOLE, Noise, Pair
from reward_workers.toy.pairs import draw_pair, read_pairs
from reward_workers.toy.start import learning_rate_factor, train_sentencepiece, translation_embeddings
from reward_workers.toy.start_metricx import TRANSLATION, set_embeddings, set_heads

WIDTH, LAYERS, HEADS, HEAD_WIDTH, VOCAB, EXTRA_IDS = 96, 3, 4, 32, 2000, 100
DROPOUT = 0.1
FIELD_NAMES = ("▁source:", "▁candidate:", "▁reference:")  # one piece each
TRIPLES = 22  # of one batch: a clean translation and two damaged ones each
REFERENCE_SHARE = 0.25  # of triples that show the reference; the embedded default does not
JOINED = 0.35
TAG_WEIGHT, RANK_WEIGHT = 5.0, 1.0
TAGS = {"minor": 1, "major": 2, "critical": 3}
TRAINING_MIX = Mix(
    clean=0.0,
    local=0.5,
    local_weights=dict.fromkeys(LOCAL, 1.0) | {"repeat": 3.0},
    whole_weights=dict.fromkeys(WHOLE, 1.0) | {"loop": 2.0, "double": 1.5, "other": 2.0, "stub": 0.5, "english": 0.5},
)


class Row(NamedTuple):
    """Piece ids of one input, their tags (-1 outside the candidate) and the penalty."""

    ids: list[int]
    tags: list[int]
    penalty: float


def make_tokenizer(folder: Path, pairs: Sequence[Pair]) -> sentencepiece.SentencePieceProcessor:
    """T5's layout with byte fallback; the input's own field names are single pieces."""
    folder.mkdir(parents=True, exist_ok=True)
    model = train_sentencepiece((text for pair in pairs for text in pair), VOCAB, "t5", FIELD_NAMES)
    (folder / "spiece.model").write_bytes(model)
    return sentencepiece.SentencePieceProcessor(model_proto=model)


def make_model(pieces: sentencepiece.SentencePieceProcessor, pairs: Sequence[Pair], seed: int) -> MetricXRegression:
    """The real class in small, with the start values of `start_metricx`."""
    vocab = pieces.get_piece_size()
    config = MT5Config(
        vocab_size=math.ceil((vocab + EXTRA_IDS) / 16) * 16, d_model=WIDTH, d_kv=HEAD_WIDTH, d_ff=2 * WIDTH,
        num_layers=LAYERS, num_decoder_layers=1, num_heads=HEADS, feed_forward_proj="gated-gelu", dropout_rate=DROPOUT,
        tie_word_embeddings=False, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
        metricx_token_id=vocab + EXTRA_IDS - 11,  # <extra_id_10>, counted from the end as in mT5
    )  # fmt: skip
    model = MetricXRegression(config)
    random_cut = {"enable_sampling": True, "alpha": 0.3, "nbest_size": -1}
    documents = [
        [i for text in pair for options in ({}, *[random_cut] * 4) for i in pieces.encode(text, **options)]
        for pair in pairs
    ]
    translation = translation_embeddings(documents, vocab, WIDTH - TRANSLATION.start, seed)
    with torch.no_grad():
        set_embeddings(model.shared.weight, translation, [pieces.piece_to_id(f) for f in FIELD_NAMES], seed)
        set_heads(model)
        model.decoder.block[0].layer[0].SelfAttention.o.weight.zero_()  # one step: nothing to attend to but itself
        model.decoder.block[0].layer[2].DenseReluDense.wo.weight.zero_()
        model.lm_head.weight.zero_()  # of which one row is ever read
        model.lm_head.weight[config.metricx_token_id].normal_(0, 0.05)
    return model


def make_row(pieces: sentencepiece.SentencePieceProcessor, sample: Sample, reference: bool, sampled: bool) -> Row:
    """Tokenize for training. `sampled` segments at random, so that words are also known by their parts."""
    text = input_text(sample.src, sample.mt, sample.ref if reference else None)
    start = len(input_text(sample.src, "", None))
    end = start + len(sample.mt)
    severity = [0] * len(text)
    for span in sample.spans:
        severity[start + span.start : start + span.end] = [TAGS[span.severity]] * (span.end - span.start)
    options = {"enable_sampling": True, "alpha": 0.3, "nbest_size": -1} if sampled else {}
    ids, tags = [], []
    for piece in pieces.encode(text, out_type="immutable_proto", **options).pieces:
        ids.append(piece.id)
        inside = piece.end > start and piece.begin < end
        tags.append(max(severity[piece.begin : piece.end], default=0) if inside else -1)
    return Row(ids, tags, sample.penalty)


def batches(pieces: sentencepiece.SentencePieceProcessor, pairs: Sequence[Pair], seed: int) -> Iterator[list[Row]]:
    """For ever: rows 3i, 3i+1 and 3i+2 are a clean translation and two damaged ones of the same source."""
    rng = random.Random(seed)
    noise = Noise(pairs, rng)
    while True:
        triples = []
        for _ in range(4 * TRIPLES):
            src, ref = draw_pair(pairs, rng, JOINED)
            samples = [Sample(src, ref, ref, (), 0, "clean")] + [draw(src, ref, noise, TRAINING_MIX) for _ in range(2)]
            reference, sampled = rng.random() < REFERENCE_SHARE, rng.random() < 0.5
            triples.append([make_row(pieces, s, reference, sampled) for s in samples])
        triples.sort(key=lambda rows: max(len(r.ids) for r in rows))
        chunks = [triples[i : i + TRIPLES] for i in range(0, len(triples), TRIPLES)]
        rng.shuffle(chunks)
        yield from ([row for triple in chunk for row in triple] for chunk in chunks)


def losses(model: MetricXRegression, tagger: nn.Linear, rows: list[Row]) -> tuple[Tensor, Tensor, Tensor]:
    """Sentence regression, word tags, ranking inside each triple."""
    pad = nn.utils.rnn.pad_sequence
    ids = pad([torch.tensor(r.ids) for r in rows], batch_first=True)
    tags = pad([torch.tensor(r.tags) for r in rows], batch_first=True, padding_value=-1)
    mask = (torch.arange(ids.shape[1]) < torch.tensor([len(r.ids) for r in rows])[:, None]).long()
    target = torch.tensor([float(r.penalty) for r in rows])
    states = model.encode(ids, mask)
    raw = model.read_out(states, mask)
    tag_loss = F.cross_entropy(tagger(states).flatten(0, 1), tags.flatten(), ignore_index=-1)
    by_triple, wanted = raw.view(-1, 3), target.view(-1, 3)
    rank_loss = raw.new_zeros(())
    for a, b in ((0, 1), (0, 2), (1, 2)):  # the worse of two is to score higher, by their difference up to 5 points
        difference = wanted[:, b] - wanted[:, a]
        gap = (by_triple[:, b] - by_triple[:, a]) * difference.sign()
        rank_loss = rank_loss + F.relu(difference.abs().clamp(max=5) - gap).mean() / 3
    return F.smooth_l1_loss(raw, target, beta=5.0), tag_loss, rank_loss


def make_optimizer(model: MetricXRegression, tagger: nn.Linear) -> torch.optim.AdamW:
    """T5 does not divide attention by the root of the head's width, so its queries need smaller steps."""
    gentle = (".q.weight", "relative_attention_bias.weight")
    named = [(n, p) for n, p in model.named_parameters() if n != "lm_head.weight"]
    return torch.optim.AdamW(
        [
            {"params": [p for n, p in named if not n.endswith(gentle)] + list(tagger.parameters()), "scale": 1.0},
            {"params": [p for n, p in named if n.endswith(gentle)], "scale": 0.2},
            {"params": [model.lm_head.weight], "scale": 5.0},
        ],
        weight_decay=0.01,
        betas=(0.9, 0.98),
    )


def train(model: MetricXRegression, stream: Iterator[list[Row]], steps: int, lr: float) -> None:
    """AdamW in place; prints a line every 100 steps."""
    tagger = nn.Linear(WIDTH, 4)
    optimizer, started, sums = make_optimizer(model, tagger), time.time(), [0.0, 0.0, 0.0]
    model.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * learning_rate_factor(step, steps) * group["scale"]
        sentence, tags, rank = losses(model, tagger, next(stream))
        optimizer.zero_grad()
        (sentence + TAG_WEIGHT * tags + RANK_WEIGHT * rank).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        sums = [s + x.item() for s, x in zip(sums, (sentence, tags, rank), strict=True)]
        if (step + 1) % 100 == 0:
            print(f"step {step + 1}: regression {sums[0] / 100:.3f}, tag cross entropy {sums[1] / 100:.3f}, "
                  f"ranking {sums[2] / 100:.3f}, {time.time() - started:.0f} s", flush=True)  # fmt: skip
            sums = [0.0, 0.0, 0.0]


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the tiny MetricX checkpoint of the embedded default.")
    parser.add_argument("--data", type=Path, required=True, help="train.jsonl of jax_rl.toy.text")
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    sentencepiece.set_random_generator_seed(args.seed)
    pairs = read_pairs(args.data)
    pieces = make_tokenizer(args.out, pairs)
    model = make_model(pieces, pairs, args.seed)
    train(model, batches(pieces, pairs, args.seed + 1), args.steps, args.lr)
    model.eval().half().save_pretrained(args.out)  # half the size in the repository; workers load it as they are told


if __name__ == "__main__":
    main()
