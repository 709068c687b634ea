"""`section.key=value` of the command line, set into the values of the file before anything is checked."""

import copy
from typing import Any

from jax_rl.config.convert import describe
from jax_rl.config.keys import LEAVES, SECRETS
from jax_rl.config.problems import Problem
from jax_rl.config.yaml_file import YamlError, parse_value

SECRET_TEXT = (
    "a secret on the command line can be read by every user of the machine; "
    "put it into the environment variable that the key ending in _env names"
)


def apply_override(values: dict[Any, Any], override: str) -> tuple[str, Problem | None]:
    """Set one override in `values`, in place, and return its key and what is wrong with it.

    An unknown key is set all the same: building the config then reports it like one of the file.
    """
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not key:
        return key, Problem((), f'command line: "{override}" is not an override; write section.key=value')
    try:
        value = _read(key, text)
    except YamlError as error:
        return key, Problem((key,), str(error))
    if any(_sets(key, value, secret) for secret in SECRETS):
        return key, Problem((key,), SECRET_TEXT)
    *sections, name = key.split(".")
    place = values
    for depth, section in enumerate(sections, start=1):
        above = ".".join(sections[:depth])
        if place.get(section) is None:
            place[section] = _default_mapping(above)
        place = place[section]
        if not isinstance(place, dict):
            return key, Problem((key,), f"{above} is a single value; there is nothing inside it")
    place[name] = value
    return key, None


def _read(key: str, text: str) -> Any:
    """The value as YAML; for a key that takes text, as it stands where YAML would make it anything else but null.

    Shells eat quotes, so that `prompt.template={text}` and `data.hf_revision=123` could hardly be written otherwise.
    """
    hint, _ = LEAVES.get(key, (None, None))
    takes_text = hint is not None and describe(hint) in ("text", "text or null")
    try:
        value = parse_value(text)
    except YamlError:
        if takes_text:
            return text
        raise
    return value if value is None or isinstance(value, str) or not takes_text else text


def _default_mapping(key: str) -> dict[str, Any]:
    """What an override of one entry starts from: the default of a mapping such as reward.severity_weights."""
    _, default = LEAVES.get(key, (None, None))
    return copy.deepcopy(default) if isinstance(default, dict) else {}


def _sets(key: str, value: Any, secret: str) -> bool:
    """Whether `key=value` gives `secret` a value, perhaps inside a whole section."""
    if key == secret:
        return value is not None
    if not secret.startswith(key + "."):
        return False
    for name in secret[len(key) + 1 :].split("."):
        if not isinstance(value, dict) or name not in value:
            return False
        value = value[name]
    return value is not None
