"""The MetricX worker: one score in 0..25 per sample, lower is better."""

import math
from typing import Any

from reward_workers.batching import Result, score_in_batches, shorten
from reward_workers.checkpoints import find_folder, fingerprint, library_versions
from reward_workers.devices import check_device
from reward_workers.metricx.model import DTYPES, load_model
from reward_workers.metricx.tokenizer import MetricXTokenizer

_MODEL_FILES = ["*.json", "*.safetensors", "*.bin"]
_TOKENIZER_FILES = ["spiece.model"]


class MetricXWorker:
    """Options: model_name, tokenizer_name, dtype, device, batch_size, max_input_length, overflow_policy."""

    def __init__(self, options: dict[str, Any]):
        device = check_device(options["device"])
        tokenizer_folder = find_folder(options["tokenizer_name"], _TOKENIZER_FILES)
        model_folder = find_folder(options["model_name"], _MODEL_FILES)
        self._tokenizer = MetricXTokenizer(tokenizer_folder)
        self._model = load_model(model_folder, DTYPES[options["dtype"]], device)
        self._dtype = options["dtype"]
        self._batch_size: int = options["batch_size"]
        self._limit: int = options["max_input_length"]
        self._truncate = options["overflow_policy"] == "truncate"
        self.facts = {
            "model": fingerprint(model_folder),
            "tokenizer": fingerprint(tokenizer_folder),
            "libraries": library_versions("torch", "transformers", "sentencepiece"),
        }

    def score(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Samples {"src", "mt", "ref" (or None)} -> {"results" in their order, "truncated": n, "skipped":
        n}.
        """
        ids: dict[int, list[int]] = {}
        results: dict[int, Result] = {}
        truncated = 0
        for index, sample in enumerate(samples):
            tokens = self._tokenizer.encode(**sample)
            if len(tokens) > self._limit:
                shorter = self._shorten(sample) if self._truncate else None
                if shorter is None:
                    results[index] = {"missing": f"{len(tokens)} tokens; MetricX's limit is {self._limit}"}
                    continue
                truncated += 1
                tokens = shorter
            ids[index] = tokens
        skipped = len(results)
        lengths = {index: len(tokens) for index, tokens in ids.items()}
        results |= score_in_batches(lengths, self._batch_size, lambda batch: self._forward([ids[i] for i in batch]))
        return {"results": [results[i] for i in range(len(samples))], "truncated": truncated, "skipped": skipped}

    def _shorten(self, sample: dict[str, Any]) -> list[int] | None:
        """Token ids with the end of the source cut off: the candidate is what is judged, and stays whole."""
        mt, ref = sample["mt"], sample["ref"]
        source = shorten(sample["src"], lambda src: len(self._tokenizer.encode(src, mt, ref)), self._limit)
        return None if source is None else self._tokenizer.encode(source, mt, ref)

    def _forward(self, token_ids: list[list[int]]) -> list[Result]:
        return [
            {"score": score} if math.isfinite(score) else {"missing": f"MetricX in {self._dtype} gave no finite number"}
            for score in self._model.score_ids(token_ids)
        ]


load = MetricXWorker
