"""Train the tiny XCOMET checkpoint of the embedded default on synthetic errors (some six minutes on one core).

    .venv-xcomet/bin/python -m reward_workers.toy.train_xcomet --data .cache/toy/train.jsonl --out configs/toy/xcomet

COMET's own model class under this file's own loop: COMET's training loop drops the word tags' annotations and calls
`.cuda()`. The result is a folder like Unbabel's: hparams.yaml, checkpoints/model.ckpt, and encoder/ with the encoder's
config and tokenizer (so that loading needs no network).
"""

import argparse
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import yaml
from comet.models import XCOMETMetric
from transformers import XLMRobertaTokenizerFast, XLMRobertaXLConfig

from reward_workers.toy.damage import Mix, Sample, draw
from reward_workers.toy.errors import LOCAL, WHOLE, Noise, Pair
from reward_workers.toy.pairs import draw_pair, read_pairs
from reward_workers.toy.start import learning_rate_factor, train_sentencepiece, translation_embeddings

WIDTH, LAYERS, HEADS, VOCAB, BATCH = 96, 3, 4, 2000, 64
SENTENCE_WEIGHT = 5.0  # of the sentence score's squared error, beside the tags' cross entropy
JOINED = 0.3
# what COMET is asked with, and how often: quality estimation is what the embedded default uses
FORMS = {("src",): 0.6, ("ref",): 0.15, ("src", "ref"): 0.25}
TRAINING_MIX = Mix(
    clean=0.24,
    local=0.40,
    local_weights=dict.fromkeys(LOCAL, 1.0),
    whole_weights=dict.fromkeys(WHOLE, 1.0) | {"truncate": 2.0, "other": 2.0, "stub": 0.5, "english": 0.5},
)


def make_encoder(folder: Path, pairs: list[Pair]) -> XLMRobertaTokenizerFast:
    """Write the encoder's config and tokenizer, the shape of facebook/xlm-roberta-xl in small."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = folder / "sentencepiece.bpe.model"
    vocabulary.write_bytes(train_sentencepiece((text for pair in pairs for text in pair), VOCAB, "xlm-r"))
    tokenizer = XLMRobertaTokenizerFast(vocab_file=str(vocabulary), model_max_length=512)
    tokenizer.save_pretrained(folder)
    vocabulary.unlink()  # tokenizer.json says it all
    XLMRobertaXLConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        intermediate_size=2 * WIDTH, max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5,
        pad_token_id=1, bos_token_id=0, eos_token_id=2, initializer_range=0.08,
        hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1,
    ).save_pretrained(folder)  # fmt: skip
    return tokenizer


def make_model(encoder: Path, tokenizer: XLMRobertaTokenizerFast, pairs: list[Pair], seed: int) -> XCOMETMetric:
    """The real class, nothing frozen; it starts with translations near each other and a layer that attends to likes."""
    model = XCOMETMetric(
        encoder_model="XLM-RoBERTa-XL", pretrained_model=str(encoder), sent_layer="mix", word_layer=LAYERS,
        layer_transformation="sparsemax", layer_norm=False, hidden_sizes=[WIDTH, WIDTH // 2], activations="Tanh",
        dropout=0.1, error_labels=["minor", "major", "critical"], cross_entropy_weights=[1.0, 1.0, 1.0, 1.0],
        word_level_training=True, nr_frozen_epochs=0, keep_embeddings_frozen=False, load_pretrained_weights=False,
        local_files_only=True, batch_size=16,
    )  # fmt: skip
    documents = [tokenizer(src)["input_ids"][1:-1] + tokenizer(ref)["input_ids"][1:-1] for src, ref in pairs]
    embeddings, attention = model.encoder.model.embeddings, model.encoder.model.encoder.layer[1].attention.self
    scale = (4 / (WIDTH // HEADS) ** 0.5) ** 0.5
    with torch.no_grad():
        start = translation_embeddings(documents, len(tokenizer), WIDTH, seed)
        embeddings.word_embeddings.weight.copy_(torch.from_numpy(start))
        embeddings.position_embeddings.weight.normal_(0, 0.3)
        attention.query.weight.copy_(torch.eye(WIDTH) * scale)
        attention.key.weight.copy_(torch.eye(WIDTH) * scale)
    return model.requires_grad_(True)


def batches(pairs: list[Pair], seed: int) -> Iterator[list[Sample]]:
    """Fresh errors for ever, sorted by length four batches at a time: less padding."""
    rng = random.Random(seed)
    noise = Noise(pairs, rng)
    while True:
        made = [draw(*draw_pair(pairs, rng, JOINED), noise, TRAINING_MIX) for _ in range(4 * BATCH)]
        made = sorted((s for s in made if s.mt), key=lambda s: len(s.mt) + len(s.src))
        chunks = [made[i : i + BATCH] for i in range(0, len(made), BATCH)]
        rng.shuffle(chunks)
        yield from chunks


def losses(model: XCOMETMetric, samples: list[Sample], form: tuple[str, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Squared error of the sentence score against 1 - penalty/25, and cross entropy of the word tags."""
    encoder = model.encoder
    spans = [[{"start": s.start, "end": s.end, "severity": s.severity} for s in x.spans] for x in samples]
    texts = [encoder.prepare_sample([x.mt for x in samples], True, spans)]
    texts += [encoder.prepare_sample([getattr(x, field) for x in samples]) for field in form]
    inputs = encoder.concat_sequences(texts, return_label_ids=True)[0]
    output = model(inputs["input_ids"], inputs["attention_mask"])
    target = torch.tensor([1 - x.penalty / 25 for x in samples])
    tags = model.wordloss(output.logits.reshape(-1, 4), inputs["label_ids"].reshape(-1))
    return ((output.score - target) ** 2).mean(), tags


def train(model: XCOMETMetric, pairs: list[Pair], steps: int, lr: float, seed: int) -> None:
    """AdamW in place; prints a line every 100 steps."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))
    rng, stream, started, sums = random.Random(seed), batches(pairs, seed + 1), time.time(), [0.0, 0.0]
    model.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * learning_rate_factor(step, steps)
        sentence, tags = losses(model, next(stream), rng.choices(list(FORMS), list(FORMS.values()))[0])
        optimizer.zero_grad()
        (SENTENCE_WEIGHT * sentence + tags).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        sums = [sums[0] + sentence.item(), sums[1] + tags.item()]
        if (step + 1) % 100 == 0:
            print(f"step {step + 1}: squared error {sums[0] / 100:.4f}, tag cross entropy {sums[1] / 100:.3f}, "
                  f"{time.time() - started:.0f} s", flush=True)  # fmt: skip
            sums = [0.0, 0.0]


def save(model: XCOMETMetric, out: Path, steps: int) -> None:
    """A checkpoint as Lightning writes it, without a path of this machine: the loader names the encoder folder."""
    hparams = dict(model.hparams) | {"class_identifier": "xcomet_metric", "pretrained_model": "encoder"}
    (out / "checkpoints").mkdir(parents=True, exist_ok=True)
    checkpoint = {"state_dict": model.eval().state_dict(), "hyper_parameters": hparams}
    checkpoint |= {"pytorch-lightning_version": "2.0.0", "epoch": 0, "global_step": steps}
    torch.save(checkpoint, out / "checkpoints" / "model.ckpt")
    (out / "hparams.yaml").write_text(yaml.safe_dump(hparams), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the tiny XCOMET checkpoint of the embedded default.")
    parser.add_argument("--data", type=Path, required=True, help="train.jsonl of jax_rl.toy.text")
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    pairs = read_pairs(args.data)
    tokenizer = make_encoder(args.out / "encoder", pairs)
    model = make_model(args.out / "encoder", tokenizer, pairs, args.seed)
    train(model, pairs, args.steps, args.lr, args.seed)
    save(model, args.out, args.steps)


if __name__ == "__main__":
    main()
