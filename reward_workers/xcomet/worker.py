"""The XCOMET worker: one score (1 is best) and the error spans of each sample."""

import math
from typing import Any

from reward_workers.batching import Result, score_in_batches, shorten
from reward_workers.checkpoints import find_folder, fingerprint, library_versions
from reward_workers.devices import check_device
from reward_workers.xcomet.model import find_encoder, load_model


class XCometWorker:
    """Options: model_name, encoder_name (or None), device, batch_size, overflow_policy."""

    def __init__(self, options: dict[str, Any]):
        device = check_device(options["device"])
        folder = find_folder(options["model_name"])
        encoder_folder = find_encoder(folder, options["encoder_name"])
        self._model = load_model(folder, encoder_folder, device)
        self._batch_size: int = options["batch_size"]
        self._truncate = options["overflow_policy"] == "truncate"
        self.facts = {
            "model": fingerprint(folder),
            "encoder": fingerprint(encoder_folder),
            "libraries": library_versions("torch", "transformers", "unbabel-comet"),
        }

    def score(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Samples {"src", "mt", "ref" (or None)} -> {"results" in their order, "truncated": n, "skipped": n}.

        Their references must be there for all or for none.
        """
        texts = [{part: text for part, text in sample.items() if text is not None} for sample in samples]
        lengths: dict[int, int] = {}
        results: dict[int, Result] = {}
        truncated = 0
        for index, sample in enumerate(texts):
            count = {part: self._model.count_tokens(text) for part, text in sample.items()}
            # <s> first </s></s> second </s>, and so on: two special tokens for each text
            limit = self._model.encoder.max_positions - 2 * len(sample)
            lengths[index] = sum(count.values())
            if lengths[index] <= limit:
                continue
            room = limit - lengths[index] + count["src"]
            source = shorten(sample["src"], self._model.count_tokens, room) if self._truncate else None
            if source is None:
                results[index] = {"missing": f"{lengths.pop(index)} tokens; XCOMET's limit is {limit}"}
                continue
            truncated += 1
            sample["src"], lengths[index] = source, limit
        skipped = len(results)
        results |= score_in_batches(lengths, self._batch_size, lambda batch: self._forward([texts[i] for i in batch]))
        return {"results": [results[i] for i in range(len(samples))], "truncated": truncated, "skipped": skipped}

    def _forward(self, samples: list[dict[str, str]]) -> list[Result]:
        return [
            {"score": score, "spans": spans} if math.isfinite(score) else {"missing": "XCOMET gave no finite number"}
            for score, spans in zip(*self._model.score_batch(samples), strict=True)
        ]


load = XCometWorker
