"""Which texts of a configuration are paths, what they are relative to, and whether they are there."""

import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any

from jax_rl.config.kinds import Role, role_of, type_hints, walk
from jax_rl.config.problems import Problem
from jax_rl.config.schema import Config

PATH_ROLES = (Role.FILE, Role.FOLDER, Role.OUTPUT)


def resolve_paths(section: Any, folder: Path) -> Any:
    """A copy of a config (or of one of its sections) with every path absolute, relative ones from `folder`.

    A model name becomes a path only where something is there, or where it can be nothing else (`./x`, `../x`, `~/x`).
    Symbolic links stay as they are: the `python` of a virtual environment is one, and works only under its own name.
    """
    changes: dict[str, Any] = {}
    hints = type_hints(type(section))
    for item in dataclasses.fields(section):
        value = getattr(section, item.name)
        if dataclasses.is_dataclass(value):
            changes[item.name] = resolve_paths(value, folder)
        elif isinstance(value, str) and value:
            changes[item.name] = _resolve(role_of(hints[item.name]), value, folder)
    return dataclasses.replace(section, **changes)


def find_missing(cfg: Config) -> list[Problem]:
    """Files, folders and programs that a config names and that are not there. Metrics that are off are not asked."""
    off = [f"reward.{name}." for name in ("metricx", "xcomet", "mqm", "chrf") if not getattr(cfg.reward, name).enabled]
    # what a worker on another machine names is there, not here
    off += [f"reward.{name}." for name in ("metricx", "xcomet") if getattr(cfg.reward, name).command_prefix]
    problems = []
    for key, hint, value in walk(cfg):
        role = role_of(hint)
        if role is None or not isinstance(value, str) or key.startswith(tuple(off)):
            continue
        complaint = _complaint(role, value)
        if complaint:
            problems.append(Problem((key,), complaint))
    return problems


def _resolve(role: Role | None, value: str, folder: Path) -> str:
    if "\0" in value:  # no path, and expanduser fails on it; `_complaint` says so where one is needed
        return value
    path = os.path.abspath(folder / os.path.expanduser(value))
    if role in PATH_ROLES or (role is Role.PROGRAM and "/" in value):
        return path
    if role is Role.MODEL and (_is_surely_path(value) or os.path.exists(path)):
        return path
    return value


def _is_surely_path(value: str) -> bool:
    return value.startswith(("/", "~", "./", "../")) or value in (".", "..")


def _complaint(role: Role, value: str) -> str | None:
    path = Path(value)
    if role is not Role.SECRET and not value.strip():
        return "is an empty text; give a value, or null where the key allows it"
    if role is not Role.SECRET and "\0" in value:
        return "holds a null character, which no path and no name can"
    if role is Role.FILE and not path.is_file():
        return f"{value} is a folder, not a file" if path.is_dir() else f"{value} does not exist"
    if role is Role.FOLDER and not path.is_dir():
        return f"{value} is a file, not a folder" if path.exists() else f"{value} does not exist"
    if role is Role.OUTPUT and path.exists() and not path.is_dir():
        return f"{value} is a file; name a folder"
    if role is Role.PROGRAM and shutil.which(value) is None:
        if path.exists():
            return f"{value} is not a program that this user may run"
        return f"{value} does not exist" if "/" in value else f"{value} is not on PATH"
    if role is Role.MODEL and _is_surely_path(value) and not path.exists():
        return f"{value} does not exist"
    if role is Role.MODEL and not _is_surely_path(value) and value.count("/") > 1:
        return f"{value} is neither a folder seen from the config file nor a hub name (owner/name)"
    return None
