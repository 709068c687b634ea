"""MetricX's input text and its tokens.

Native SentencePiece, as mT5 was trained: the fast tokenizer of transformers has no byte fallback (rare characters
become <unk>). The end token that mT5 adds is left out, as Google's own predict script removes it.
"""

import os

import sentencepiece


class MetricXTokenizer:
    """Reads `spiece.model` of a folder."""

    def __init__(self, folder: str):
        path = os.path.join(folder, "spiece.model")
        if not os.path.isfile(path):
            raise FileNotFoundError(f"MetricX needs the SentencePiece model of its tokenizer, and there is no {path}")
        self.pieces = sentencepiece.SentencePieceProcessor(model_file=path)

    def encode(self, src: str, mt: str, ref: str | None) -> list[int]:
        """Token ids of the model's input, without the end token."""
        return self.pieces.encode(input_text(src, mt, ref))


def input_text(src: str, mt: str, ref: str | None) -> str:
    """The one line that MetricX-24 judges; without a reference it estimates quality (QE)."""
    text = f"source: {src} candidate: {mt}"
    return text if ref is None else f"{text} reference: {ref}"
