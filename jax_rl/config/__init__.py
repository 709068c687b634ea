"""The configuration: `load_config` reads it, `dump_config` writes it, `Config` holds it. Imports nothing of JAX."""

from jax_rl.config.checks import resolve_reference
from jax_rl.config.load import dump_config, load_config
from jax_rl.config.problems import ConfigError
from jax_rl.config.schema import Config

__all__ = ["Config", "ConfigError", "dump_config", "load_config", "resolve_reference"]
