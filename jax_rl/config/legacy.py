"""Keys and values of the PyTorch system that this one replaces: its files load, with a line on what is done instead."""

from typing import Any

from jax_rl.config.schema import Config

UNUSED_RL_KEYS = ("backend",)
UNUSED_RL_PREFIX = "deepspeed_"


def translate_old_keys(tree: dict[Any, Any], lines: dict[str, int]) -> list[str]:
    """Take the old keys out of `tree` (in place, where they stand in mappings) and return one line for each."""
    notices = []
    rl = _mapping(tree, "rl")
    for name in [name for name in rl if name in UNUSED_RL_KEYS or str(name).startswith(UNUSED_RL_PREFIX)]:
        del rl[name]
        notices.append(f"rl.{name}: not used; JAX itself spreads training over the devices of model.policy_gpu_ids")
    mqm = _mapping(_mapping(tree, "reward"), "mqm")
    if "timeout_s" in mqm:
        seconds = mqm.pop("timeout_s")
        if "timeout_sec" in mqm:
            notices.append("reward.mqm.timeout_s: not used; reward.mqm.timeout_sec is set and counts")
        else:
            mqm["timeout_sec"] = seconds
            lines["reward.mqm.timeout_sec"] = lines.get("reward.mqm.timeout_s", 0)
            notices.append("reward.mqm.timeout_s: read as reward.mqm.timeout_sec")
    if mqm.get("error_policy") == "zero":
        mqm["error_policy"] = "skip"
        notices.append(
            "reward.mqm.error_policy: zero is read as skip; a judge that fails gives a missing score, never a number"
        )
    return notices


def explain_unused_values(cfg: Config) -> list[str]:
    """One line for each key that is kept for old files alone and is set to something that does not happen."""
    notices = []
    model = cfg.model
    if model.attn_implementation != "auto":
        notices.append(
            f"model.attn_implementation: {model.attn_implementation} is not used; XLA compiles the attention"
        )
    if model.trust_remote_code:
        notices.append("model.trust_remote_code: not used; no code of a checkpoint is ever run")
    if not model.use_fast_tokenizer:
        notices.append("model.use_fast_tokenizer: false is not used; the tokenizer is always the fast one")
    return notices


def _mapping(parent: dict[Any, Any], name: str) -> dict[Any, Any]:
    child = parent.get(name)
    return child if isinstance(child, dict) else {}
