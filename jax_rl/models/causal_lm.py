"""The model as a Flax NNX module: for notebooks, and to begin with. Jitted code takes the plain tree (`split`)."""

from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jax_rl.models.hf_checkpoint import load_model
from jax_rl.models.params import Params, ShardingFor
from jax_rl.models.registry import Model


class CausalLM(nnx.Module):
    """A `Model` with its parameters, an `nnx.Param` each.

        lm = CausalLM.load("checkpoints/my-gemma")
        logits = lm(tokens)
        model, params = lm.split()  # once; model.forward(params, ...) is what gets jitted

    Splitting and merging the module around every jitted call would cost tens of milliseconds of dispatch.
    """

    def __init__(self, model: Model, params: Params):
        self.model = nnx.static(model)
        self.params = nnx.data(jax.tree.map(nnx.Param, params))

    @classmethod
    def init(cls, model: Model, key: jax.Array, dtype: DTypeLike = jnp.float32) -> "CausalLM":
        """With random parameters."""
        return cls(model, model.init(key, dtype))

    @classmethod
    def load(
        cls, folder: Path | str, dtype: DTypeLike = jnp.float32, sharding_for: ShardingFor | None = None
    ) -> "CausalLM":
        """From a Hugging Face folder: see `hf_checkpoint.load_model`."""
        return cls(*load_model(folder, dtype, sharding_for))

    def split(self) -> tuple[Model, Params]:
        """The pure functions and the plain tree of arrays that they take."""
        return self.model, nnx.to_pure_dict(nnx.state(self, nnx.Param))["params"]

    def __call__(self, tokens: Int[Array, "B T"], positions: Int[Array, "B T"] | None = None) -> Float[Array, "B T V"]:
        """Logits, float32. `positions`: -1 on padding; None = no padding."""
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        model, params = self.split()
        hidden, _ = model.forward(params, tokens, positions)
        return model.logits(params, hidden)
