"""The config.json of a model: of a folder, or of a published one by its hub name, built in (`published.json`)."""

import json
from pathlib import Path
from typing import Any

from jax_rl.config import Config
from jax_rl.models.registry import Model, model_from_config, read_config
from jax_rl.planning.targets import PlanError


def published_configs() -> dict[str, dict[str, Any]]:
    """config.json by hub name."""
    listed = json.loads(Path(__file__).with_name("published.json").read_text(encoding="utf-8"))
    return {name: entry["config"] for entry in listed for name in entry["hub_names"]}


def planned_model(cfg: Config) -> Model:
    """The policy, without its weights.

    Raises:
        PlanError: neither a folder nor a name that is built in.
        ModelError: the folder's config.json is not supported.
    """
    name = cfg.model.policy_name_or_path or ""
    known = published_configs()
    if name in known:
        return model_from_config(known[name])
    folder = Path(name).expanduser()
    if name and folder.is_dir():
        return model_from_config(read_config(folder))
    raise PlanError(
        f"model.policy_name_or_path is {name!r}; a plan needs a folder with config.json, or one of: "
        + ", ".join(sorted(known))
    )
