"""Tiny tokenizers of the kinds that real checkpoints have, trained here on a few lines of many scripts."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = [
    "The translation of this sentence is good, isn't it?  Yes -- it is.",
    "번역의 품질을 평가하는 모델은 문장 전체를 읽는다.",
    "안녕하세요, 세계!",
    "机器翻译的质量评估",
    "Привет, мир! Как дела?",
    "Übersetzung für größere Männer",
    "日本語の文章です。",
    "emoji 😀 👍",
    "numbers 12345 67",
    "\tcode\n\n  indented",
] * 30
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GEMMA_SPECIALS = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def byte_level(nfc: bool) -> tokenizers.Tokenizer:
    """Qwen's kind."""
    backend = tokenizers.Tokenizer(models.BPE())
    if nfc:
        backend.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(QWEN_SPLIT), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
    )
    backend.add_special_tokens([AddedToken(t, special=True) for t in ("<|im_end|>", "<|im_start|>", "<|endoftext|>")])
    backend.add_tokens([AddedToken("<think>"), AddedToken("</think>"), AddedToken("한 글")])
    return backend


def sentencepiece_bpe(prefix: bool) -> tokenizers.Tokenizer:
    """Gemma's kind; with `prefix` Llama 2's: a blank is put before the text and stripped after it."""
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    blank = normalizers.Replace(" ", "▁")
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), blank]) if prefix else blank
    if not prefix:
        backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    trainer = trainers.BpeTrainer(vocab_size=330, limit_alphabet=90, special_tokens=GEMMA_SPECIALS, show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    spec = json.loads(backend.to_str())
    vocab = spec["model"]["vocab"]
    vocab.update({token: len(vocab) + n for n, token in enumerate(BYTES)})
    spec["model"].update(byte_fallback=True, fuse_unk=True)
    backend = tokenizers.Tokenizer.from_str(json.dumps(spec))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    backend.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    return backend


def unigram() -> tokenizers.Tokenizer:
    """Unigram with Metaspace, decoded after ByteFallback."""
    backend = tokenizers.Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=GEMMA_SPECIALS, unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    spec = json.loads(backend.to_str())
    spec["model"]["vocab"] += [[token, -20.0] for token in BYTES]
    spec["model"]["byte_fallback"] = True
    backend = tokenizers.Tokenizer.from_str(json.dumps(spec))
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return backend


KINDS: dict[str, Callable[[], tokenizers.Tokenizer]] = {
    "byte_level_nfc": lambda: byte_level(nfc=True),
    "byte_level": lambda: byte_level(nfc=False),
    "gemma": lambda: sentencepiece_bpe(prefix=False),
    "llama": lambda: sentencepiece_bpe(prefix=True),
    "unigram": unigram,
}


def save(backend: tokenizers.Tokenizer, folder: Path, **config) -> Path:
    """A checkpoint's tokenizer files: tokenizer.json, and `config` as tokenizer_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def backends() -> dict[str, tokenizers.Tokenizer]:
    return {kind: build() for kind, build in KINDS.items()}


@pytest.fixture(scope="session")
def save_tokenizer() -> Callable[..., Path]:
    return save


@pytest.fixture(scope="session")
def folders(backends, tmp_path_factory) -> dict[str, Path]:
    """Kind -> folder that holds a tokenizer of that kind."""
    root = tmp_path_factory.mktemp("tokenizers")
    made = {}
    for kind, backend in backends.items():
        names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
        if not kind.startswith("byte_level"):
            names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
        made[kind] = save(backend, root / kind, **names)
    return made
