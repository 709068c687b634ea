"""Run by .venv-metricx: makes a tiny random MetricX checkpoint and says what plain transformers computes with it.

Neither uses this project's model or tokenizer code. `tiny_metricx.py FOLDER LIMIT` writes FOLDER/expected.json:
`pairs`, their scores `qe` and `ref`, the token ids of the former; a pair with a `long` source and its scores when that
is `shortened` to LIMIT tokens or a few less; a character that makes the score NaN (`poison`).
"""

import json
import sys
from pathlib import Path

import sentencepiece
import sentences
import torch
from transformers import MT5Config, MT5ForConditionalGeneration, T5Tokenizer

SCORE_TOKEN = 500


def main(folder: Path, limit: int) -> None:
    folder.mkdir()
    tokenizer = make_tokenizer(folder)
    model = make_model()
    pairs = sentences.pairs(12)
    qe = [token_ids(tokenizer, {**pair, "ref": None}) for pair in pairs]
    with_reference = [token_ids(tokenizer, pair) for pair in pairs]
    long = sentences.LONG_SOURCE
    sources = [long["src"][:length] for length in range(1, 6 * limit)]
    prefixes = [token_ids(tokenizer, {**long, "src": src, "ref": None}) for src in sources]
    shortened = [ids for ids in prefixes if limit - 3 <= len(ids) <= limit]
    assert len(prefixes[-1]) > limit + 10
    spread = torch.linspace(-15, 40, len(pairs))
    fit_scores(model, [*qe, *with_reference, shortened[-1]], [*spread, *spread.flip(0), 12.5])
    model.shared.weight.data[tokenizer.convert_tokens_to_ids(sentences.POISON)] = float("nan")
    model.save_pretrained(folder)
    expected = {
        "pairs": pairs,
        "long": long,
        "poison": sentences.POISON,
        "qe": [score(model, ids) for ids in qe],
        "ids": qe,
        "ref": [score(model, ids) for ids in with_reference],
        "shortened": [score(model, ids) for ids in shortened],
    }
    (folder / "expected.json").write_text(json.dumps(expected))


def make_tokenizer(folder: Path) -> T5Tokenizer:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences.corpus()),
        model_prefix=str(folder / "spiece"),
        vocab_size=380,
        byte_fallback=True,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        user_defined_symbols=[sentences.POISON],
        minloglevel=2,
    )
    (folder / "spiece.vocab").unlink()
    return T5Tokenizer(str(folder / "spiece.model"), extra_ids=0, legacy=True)


def make_model() -> MT5ForConditionalGeneration:
    torch.manual_seed(0)
    config = MT5Config(
        vocab_size=512, d_model=64, d_kv=16, d_ff=64, num_layers=2, num_heads=4, tie_word_embeddings=False,
        feed_forward_proj="gated-gelu", decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    config.metricx_token_id = SCORE_TOKEN
    model = MT5ForConditionalGeneration(config).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=1.0 if name == "shared.weight" else 0.15)
    return model


def token_ids(tokenizer: T5Tokenizer, sample: dict) -> list[int]:
    text = f"source: {sample['src']} candidate: {sample['mt']}"
    if sample["ref"] is not None:
        text += f" reference: {sample['ref']}"
    ids = tokenizer(text)["input_ids"]
    assert ids[-1] == tokenizer.eos_token_id
    return ids[:-1]


@torch.inference_mode()
def score(model: MT5ForConditionalGeneration, ids: list[int]) -> float:
    logits = model(input_ids=torch.tensor([ids]), decoder_input_ids=torch.tensor([[0]])).logits
    return logits[0, 0, SCORE_TOKEN].clamp(0, 25).item()


@torch.inference_mode()
def fit_scores(model: MT5ForConditionalGeneration, rows: list[list[int]], wanted: list[float]) -> None:
    """Sets the score token's row of the head so that the scores spread over 0..25 and beyond."""
    start = torch.tensor([[0]])
    outputs = [model(torch.tensor([ids]), decoder_input_ids=start, output_hidden_states=True) for ids in rows]
    hidden = torch.stack([output.decoder_hidden_states[-1][0, 0] for output in outputs])
    ridge = hidden.T @ hidden + torch.eye(hidden.shape[1])  # without it the row would be large, and so rounding errors
    model.lm_head.weight[SCORE_TOKEN] = torch.linalg.solve(ridge, hidden.T @ torch.tensor(wanted))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
