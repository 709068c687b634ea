"""The embedded default's tokenizer: a small BPE in Gemma's format (U+2581 for blanks, byte fallback, chat template)."""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

SPECIALS = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")
PAD, EOS, BOS, UNK, START_OF_TURN, END_OF_TURN = range(6)
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))

CHAT_TEMPLATE = """{{ bos_token }}{% for message in messages -%}
<start_of_turn>{{ 'model' if message['role'] == 'assistant' else message['role'] }}
{{ message['content'] | trim }}<end_of_turn>
{% endfor -%}
{% if add_generation_prompt -%}
<start_of_turn>model
{% endif -%}"""


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """BPE over words (a word carries its leading blank); every character not in the vocabulary falls back to bytes."""
    learned = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    _gemma_pipeline(learned)
    learned.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=vocab_size - len(SPECIALS) - len(BYTES), show_progress=False, min_frequency=2),
    )
    model = json.loads(learned.to_str())["model"]
    pieces = sorted(model["vocab"], key=model["vocab"].get)
    vocab = {piece: i for i, piece in enumerate((*SPECIALS, *BYTES, *pieces))}
    merges = [tuple(merge) for merge in model["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    _gemma_pipeline(tokenizer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", BOS)]
    )
    return tokenizer


def _gemma_pipeline(tokenizer: Tokenizer) -> None:
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("\u2581|\n"), "merged_with_next")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes the files that a Hugging Face checkpoint of a chat model has."""
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")
    generation = {"bos_token_id": BOS, "pad_token_id": PAD, "eos_token_id": [EOS, END_OF_TURN]}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=1) + "\n")
