"""Run by .venv-xcomet: makes a tiny random XCOMET checkpoint and says what COMET's own `predict` gives with it.

`tiny_xcomet.py FOLDER` writes FOLDER/expected.json: `pairs` and their predictions `qe` and `ref`, each {"scores",
"spans"}; a pair with a `long` source and its predictions when that is `shortened` to what fits or a few tokens less; a
character that makes the score NaN (`poison`).
"""

import json
import sys
from pathlib import Path

import sentencepiece
import sentences
import torch
import yaml
from comet.models import XCOMETMetric
from transformers import XLMRobertaTokenizerFast, XLMRobertaXLConfig

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
LIMIT = 512


def main(folder: Path) -> None:
    encoder = folder / "encoder"
    encoder.mkdir(parents=True)
    tokenizer = make_encoder(encoder)
    model = make_model(str(encoder))
    embeddings = model.encoder.model.embeddings.word_embeddings.weight.data
    embeddings[tokenizer.convert_tokens_to_ids(sentences.POISON)] = float("nan")
    save(model, folder)
    qe = [{"src": pair["src"], "mt": pair["mt"]} for pair in sentences.pairs(12)]
    long = {"src": sentences.LONG_SOURCE["src"], "mt": sentences.LONG_SOURCE["mt"]}
    room = LIMIT - len(tokenizer(long["mt"])["input_ids"])
    prefixes = [long["src"][:n] for n in range(1, len(long["src"]))]
    fitting = [src for src in prefixes if room - 3 <= len(tokenizer(src)["input_ids"]) <= room]
    expected = {
        "pairs": sentences.pairs(12),
        "long": sentences.LONG_SOURCE,
        "poison": sentences.POISON,
        "qe": predict(model, qe),
        "ref": predict(model, sentences.pairs(12)),
        "shortened": predict(model, [{**long, "src": src} for src in fitting]),
    }
    (folder / "expected.json").write_text(json.dumps(expected))


def make_encoder(folder: Path) -> XLMRobertaTokenizerFast:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences.corpus()),
        model_prefix=str(folder / "sentencepiece.bpe"),
        vocab_size=130,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        normalization_rule_name="nmt_nfkc",
        user_defined_symbols=[sentences.POISON],
        minloglevel=2,
    )
    (folder / "sentencepiece.bpe.vocab").unlink()
    tokenizer = XLMRobertaTokenizerFast(vocab_file=str(folder / "sentencepiece.bpe.model"), model_max_length=512)
    tokenizer.save_pretrained(folder)
    XLMRobertaXLConfig(
        vocab_size=len(tokenizer), max_position_embeddings=514, type_vocab_size=1, pad_token_id=1, **SIZES
    ).save_pretrained(folder)
    return tokenizer


def make_model(encoder: str) -> XCOMETMetric:
    torch.manual_seed(0)
    model = XCOMETMetric(
        pretrained_model=encoder,
        word_layer=SIZES["num_hidden_layers"],
        hidden_sizes=[32, 16],
        load_pretrained_weights=False,
        local_files_only=True,
    )
    with torch.no_grad():  # spans and scores that vary
        for name, parameter in model.encoder.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 1.0 if "word_embeddings" in name else 0.14)
        model.hidden2tag.weight.normal_(0, 0.8)
        model.hidden2tag.bias.copy_(torch.tensor([1.2, 0.3, 0.0, -0.3]))
        last = [layer for layer in model.estimator.modules() if isinstance(layer, torch.nn.Linear)][-1]
        last.weight.normal_(0, 0.3)
        last.bias.fill_(0.8)
    return model


def save(model: XCOMETMetric, folder: Path) -> None:
    (folder / "checkpoints").mkdir()
    settings = {**model.hparams, "class_identifier": "xcomet_metric", "pretrained_model": "facebook/xlm-roberta-xl"}
    weights = model.state_dict()
    weights["encoder.model.embeddings.position_ids"] = torch.arange(514)[None]  # as the older released files have it
    checkpoint = {"state_dict": weights, "hyper_parameters": settings, "pytorch-lightning_version": "2.0.0"}
    torch.save(checkpoint, folder / "checkpoints" / "model.ckpt")
    (folder / "hparams.yaml").write_text(yaml.safe_dump(settings))


def predict(model: XCOMETMetric, samples: list[dict[str, str]]) -> dict[str, list]:
    prediction = model.predict(samples, batch_size=4, gpus=0, num_workers=0, progress_bar=False)
    return {"scores": prediction.scores, "spans": prediction.metadata.error_spans}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
