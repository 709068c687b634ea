"""XCOMET kept in memory: COMET's own class and forward pass, without a Lightning Trainer per call.

The score and spans are those of `XCOMETMetric.predict`; only white space at the ends of a span is left out (COMET
counts the blank before a word into the word).
"""

import os
import pickle
from typing import Any

import torch
import yaml
from comet.models import XCOMETMetric
from torch import Tensor

from reward_workers.checkpoints import find_folder

_ENCODER_FILES = ["*.json", "sentencepiece.bpe.model"]  # of its hub folder: configuration and tokenizer, no weights
_POSITION_IDS = "encoder.model.embeddings.position_ids"

Span = dict[str, Any]  # {"start", "end", "severity", "confidence"}


class ResidentXComet(XCOMETMetric):
    """XCOMETMetric whose `decode` copies to the host once per batch; upstream's does it for every token."""

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"].pop(_POSITION_IDS, None)  # older transformers saved this constant, newer ones do not

    def decode(
        self, subword_probs: Tensor, input_ids: Tensor, mt_offsets: list[list[tuple[int, int]]]
    ) -> list[list[Span]]:
        """Label probabilities [B, T, 4] and character ranges of each row's mt tokens -> error spans of each row.

        A run of tokens with any error label is one span, of the first one's severity; a run that lasts up to the end
        token is dropped. Both are COMET's rules (UnifiedMetric.decode).
        """
        confidence, label = (part.cpu() for part in subword_probs.float().max(dim=-1))
        rows: list[list[Span]] = []
        for row, (labels, offsets) in enumerate(zip(label.tolist(), mt_offsets, strict=True)):
            spans: list[Span] = []
            begin: int | None = None
            for token, value in enumerate(labels[: len(offsets)]):
                if value and begin is None:
                    begin = token
                elif not value and begin is not None:
                    severity = self.label_encoder.ids_to_label[labels[begin]].removeprefix("I-")
                    mean = confidence[row, begin:token].mean().item()
                    start, end = offsets[begin][0], offsets[token - 1][1]
                    spans.append({"start": start, "end": end, "severity": severity, "confidence": mean})
                    begin = None
            rows.append(spans)
        return rows

    @torch.inference_mode()
    def score_batch(self, samples: list[dict[str, str]]) -> tuple[list[float], list[list[Span]]]:
        """Scores (1 is best) and trimmed spans of {"src", "mt"} samples; all of them with a "ref", or none."""
        inputs = self.prepare_for_inference(samples)
        inputs = tuple({key: _to_device(value, self.device) for key, value in part.items()} for part in inputs)
        prediction = self.predict_step(inputs)
        spans = prediction["metadata"]["error_spans"]
        trimmed = [trim_spans(sample["mt"], row) for sample, row in zip(samples, spans, strict=True)]
        return prediction["scores"].float().tolist(), trimmed

    def count_tokens(self, text: str) -> int:
        """Tokens of `text` without special ones."""
        return len(self.encoder.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def load_model(folder: str, encoder_folder: str, device: str) -> ResidentXComet:
    """The checkpoint `folder`/checkpoints/model.ckpt with the encoder's configuration and tokenizer of
    `encoder_folder`.

    `strict`, as COMET's default leaves weights that the file lacks at random values without a word.
    """
    path = os.path.join(folder, "checkpoints", "model.ckpt")
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{folder} is not an XCOMET checkpoint: there is no checkpoints/model.ckpt in it")
    try:
        model = ResidentXComet.load_from_checkpoint(
            path,
            map_location="cpu",
            strict=True,
            weights_only=True,
            pretrained_model=encoder_folder,
            load_pretrained_weights=False,
            local_files_only=True,
        )
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds Python objects beside weights and settings, and nothing is unpickled here. If you trust "
            "it, load it with torch.load(weights_only=False) and save its state_dict and hyper_parameters alone"
        ) from error
    return model.eval().to(device)


def find_encoder(folder: str, encoder_name: str | None) -> str:
    """The folder of the encoder's config.json and tokenizer: as named, or the checkpoint's own.

    Its own is `encoder/` beside `hparams.yaml`, else what that file names as `pretrained_model`, from the hub.
    """
    path = os.path.join(folder, "hparams.yaml")
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{folder} is not an XCOMET checkpoint: there is no hparams.yaml in it")
    with open(path, encoding="utf-8") as file:
        settings = yaml.safe_load(file)
    if settings.get("class_identifier") != "xcomet_metric":
        raise ValueError(
            f"{path}: class_identifier is {settings.get('class_identifier')!r}; XCOMET's is 'xcomet_metric'"
        )
    if encoder_name is not None:
        return find_folder(encoder_name, _ENCODER_FILES)
    own = os.path.join(folder, "encoder")
    return own if os.path.isdir(own) else find_folder(settings["pretrained_model"], _ENCODER_FILES)


def trim_spans(mt: str, spans: list[Span]) -> list[Span]:
    """Spans inside `mt` without white space at their ends; those with nothing left are dropped."""
    trimmed = []
    for span in spans:
        part = mt[span["start"] : span["end"]]
        start = span["start"] + len(part) - len(part.lstrip())
        end = start + len(part.strip())
        if start < end:
            trimmed.append({**span, "start": start, "end": end})
    return trimmed


def _to_device(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value  # mt_offsets is a list
