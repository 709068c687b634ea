"""What the machine can do: products of large matrices, the products of one decode step, memory bandwidth.

    python -m benchmarks.limits torch|xla MODEL ...

Best of several runs each. Prints one JSON object: gemm_gflops and triad_gb per second, and for each model the seconds
that the products of one decode step take, by number of rows: all layers with weights of their own, and the head.
"""

import json
import sys
import time
from collections.abc import Callable

from benchmarks.workloads import MODELS, ModelSize

SIDE = 2048
TRIAD = 1 << 25
ROWS = (1, 2, 4, 8, 16, 24, 32, 48, 64)


class Torch:
    def __init__(self) -> None:
        import torch

        self.torch = torch
        torch.set_grad_enabled(False)

    def ones(self, *shape: int):
        return self.torch.ones(*shape)

    def gemm(self, a, b) -> Callable[[], object]:
        return lambda: self.torch.nn.functional.linear(a, b)

    def triad(self, a, b) -> Callable[[], object]:
        out = self.torch.empty_like(a)
        return lambda: self.torch.add(a, b, alpha=3.0, out=out)

    def chain(self, inputs: dict, weights: list) -> Callable[[], object]:
        def run():
            for w in weights:
                self.torch.nn.functional.linear(inputs[w.shape[1]], w)

        return run


class XLA:
    def __init__(self) -> None:
        import jax
        import jax.numpy as jnp

        self.jax, self.jnp = jax, jnp

    def ones(self, *shape: int):
        return self.jnp.ones(shape)

    def gemm(self, a, b) -> Callable[[], object]:
        product = self.jax.jit(lambda a, b: self.jnp.einsum("ni,oi->no", a, b))
        return lambda: product(a, b).block_until_ready()

    def triad(self, a, b) -> Callable[[], object]:
        add = self.jax.jit(lambda a, b: a + 3.0 * b)
        return lambda: add(a, b).block_until_ready()

    def chain(self, inputs: dict, weights: list) -> Callable[[], object]:
        product = self.jax.jit(
            lambda inputs, weights: [self.jnp.einsum("ni,oi->no", inputs[w.shape[1]], w) for w in weights]
        )
        return lambda: self.jax.block_until_ready(product(inputs, weights))


def best(run: Callable[[], object], times: int) -> float:
    """Seconds of the fastest of `times` runs, after one that is not counted."""
    run()
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def decode_seconds(library: Torch | XLA, size: ModelSize) -> dict[int, float]:
    shapes = [shape for _ in range(size.layers) for shape in size.matrices] + [(size.vocab, size.hidden)]
    weights = [library.ones(*shape) for shape in shapes]

    def step(rows: int) -> Callable[[], object]:
        return library.chain({columns: library.ones(rows, columns) for _, columns in shapes}, weights)

    return {rows: best(step(rows), 8) for rows in ROWS}


def measure(library: Torch | XLA, models: list[str]) -> dict:
    square = library.gemm(library.ones(SIDE, SIDE), library.ones(SIDE, SIDE))
    triad = library.triad(library.ones(TRIAD), library.ones(TRIAD))
    return {
        "gemm_gflops": 2 * SIDE**3 / best(square, 8) / 1e9,
        "triad_gb": 3 * 4 * TRIAD / best(triad, 8) / 1e9,
        "decode_step_seconds": {name: decode_seconds(library, MODELS[name]) for name in models},
    }


if __name__ == "__main__":
    print(json.dumps(measure({"torch": Torch, "xla": XLA}[sys.argv[1]](), sys.argv[2:])))
