"""The one error of this room."""

from jax_rl.errors import UserError


class ModelError(UserError):
    """A checkpoint, a config.json or a model name that cannot be used; the message says which and why."""
