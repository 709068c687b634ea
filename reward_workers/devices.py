"""The device that a model is put on."""

import torch


def check_device(device: str) -> str:
    """`device` (cpu or cuda), or ValueError where torch has no such device here."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "device is cuda, but the torch of this worker sees no CUDA device; with device: cpu it runs without"
        )
    return device
