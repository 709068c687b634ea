"""YAML file and overrides -> `Config`, with everything that is wrong reported at once; and back to YAML."""

import copy
import dataclasses
import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import yaml

from jax_rl.config.checks import check_values, explain_doubts
from jax_rl.config.convert import Mismatch, convert
from jax_rl.config.keys import nearest_key
from jax_rl.config.kinds import Role, role_of, type_hints
from jax_rl.config.legacy import explain_unused_values, translate_old_keys
from jax_rl.config.overrides import apply_override
from jax_rl.config.paths import find_missing, resolve_paths
from jax_rl.config.problems import ConfigError, Problem
from jax_rl.config.schema import Config
from jax_rl.config.yaml_file import YamlError, YamlTree, parse_yaml

Section = TypeVar("Section")
log = logging.getLogger(__name__)


def load_config(path: str | Path, overrides: Iterable[str] = (), *, files: bool = True) -> Config:
    """Read a YAML file, apply `section.key=value` overrides, and check the whole.

    Relative paths, those of overrides too, count from the file's folder. What is accepted but has no effect is logged,
    a line each. `files`: whether what it names must be there. Raises `ConfigError`, which lists every problem of the
    file and of the overrides.
    """
    path = Path(path)
    tree = _read(path)
    problems = [Problem((key,), "is given twice; keep one of them", line) for key, line in tree.duplicates.items()]
    values, overridden = copy.deepcopy(tree.values), set()
    for override in overrides:
        key, problem = apply_override(values, override)
        overridden.add(key)
        if problem:
            problems.append(problem)
    notices = translate_old_keys(values, tree.lines)
    cfg = resolve_paths(_build(Config, values, "", problems), path.resolve().parent)
    bad = {problem.keys[0] for problem in problems if problem.keys}
    # a rule says nothing about a key that already has a problem of its own
    found = check_values(cfg) + (find_missing(cfg) if files else [])
    problems += [problem for problem in found if bad.isdisjoint(problem.keys)]
    if problems:
        raise ConfigError(str(path), (_located(problem, tree, overridden) for problem in problems))
    for notice in notices + explain_unused_values(cfg) + explain_doubts(cfg):
        log.warning("%s: %s", path.name, notice)
    return cfg


def dump_config(cfg: Config) -> str:
    """Every key as YAML, secrets left out. Loads again, from any folder, to the same config (without its secrets).

    Relative paths, which only a config made in code has, count from the current folder.
    """
    return yaml.safe_dump(_as_dict(resolve_paths(cfg, Path.cwd())), sort_keys=False, allow_unicode=True, width=110)


def _as_dict(section: Any) -> dict[str, Any]:
    result: dict[str, Any] = {}
    hints = type_hints(type(section))
    for item in dataclasses.fields(section):
        value = getattr(section, item.name)
        if dataclasses.is_dataclass(value):
            result[item.name] = _as_dict(value)
        elif role_of(hints[item.name]) is not Role.SECRET:
            result[item.name] = list(value) if isinstance(value, tuple) else value
    return result


def _read(path: Path) -> YamlTree:
    try:
        return parse_yaml(path.read_text(encoding="utf-8"))
    except YamlError as error:
        raise ConfigError(str(path), [str(error)]) from None
    except UnicodeDecodeError as error:
        raise ConfigError(str(path), [f"is not UTF-8 text (byte {error.start})"]) from None
    except OSError as error:
        raise ConfigError(str(path), [f"cannot be read: {error.strerror}"]) from None


def _build(cls: type[Section], values: Any, prefix: str, problems: list[Problem]) -> Section:
    """A section of the config; what does not fit goes to `problems` and keeps its default."""
    if values is None:
        values = {}
    if not isinstance(values, dict):
        shown = json.dumps(values, ensure_ascii=False, default=str)
        problems.append(Problem((prefix.rstrip("."),), f"{shown} is a value; this is a section, with keys under it"))
        values = {}
    hints = type_hints(cls)
    kept: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        if name not in hints:
            problems.append(Problem((key,), f"unknown key; did you mean {nearest_key(prefix, str(name))}?"))
        elif dataclasses.is_dataclass(hints[name]):
            kept[name] = _build(hints[name], value, f"{key}.", problems)
        else:
            try:
                kept[name] = convert(hints[name], value)
            except Mismatch as mismatch:
                problems.append(Problem((key,), str(mismatch)))
    return cls(**kept)


def _located(problem: Problem, tree: YamlTree, overridden: set[str]) -> str:
    key = problem.keys[0] if problem.keys else ""
    line = problem.line or tree.lines.get(key)
    if key in overridden and not problem.line:
        return f"command line: {problem}"
    return f"line {line}: {problem}" if line else str(problem)
