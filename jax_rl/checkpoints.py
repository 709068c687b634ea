"""Checkpoints that hold everything a resume needs. Every folder appears whole or not at all.

`checkpoint-N/` and `resume_latest/` have the same content: `state/` (Orbax: parameters, optimizer state, counters) and
`meta.json` (update, position in the data, resolved config, what the run remembers), which is written last. The bytes
are written once: `checkpoint-N` is made of hard links to `resume_latest`'s files, where the file system has them.
"""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any, Protocol

import jax
import orbax.checkpoint as ocp

from jax_rl.errors import UserError
from jax_rl.files import move_aside

FORMAT = 1
META = "meta.json"
STATE = "state"
RESUME = "resume_latest"


class CheckpointError(UserError):
    """The folder is not a checkpoint, or not one of this run."""


class Together(Protocol):
    """The hosts of a run, as `parallel.multihost.Hosts` has them."""

    @property
    def is_first(self) -> bool: ...

    def gather(self, what: str, value: Any) -> list[Any]:
        """Every host's value; nobody goes on before all have said theirs."""
        ...


class Alone:
    """One host."""

    is_first = True

    def gather(self, what: str, value: Any) -> list[Any]:
        return [value]


class Checkpoints:
    """The checkpoints of one output folder.

    Args:
        keep_last: how many `checkpoint-N` stay; 0 = all.
        resume_only: keep `resume_latest` and no `checkpoint-N` (`logging.save_only_best`).
        hosts: of a run with several, which share the folder and call everything here together: the first one moves
            folders about, all write their parts of the arrays.
    """

    def __init__(self, output_dir: Path, keep_last: int = 0, resume_only: bool = False, hosts: Together | None = None):
        self.dir = Path(output_dir)
        self.keep_last = keep_last
        self.resume_only = resume_only
        self._hosts = hosts or Alone()
        self._old = self.dir / f".{RESUME}.old"

    def mend(self) -> None:
        """Finishes or removes what a kill left half-way. For the run that writes here: it spoils another's save."""
        if self._hosts.is_first:
            self.dir.mkdir(parents=True, exist_ok=True)
            self._finish_publication()
        self._hosts.gather("checkpoint folder", None)

    def save(self, state: Any, meta: dict) -> None:
        """Writes `resume_latest` and, unless `resume_only`, `checkpoint-{meta["update"]}`."""
        # a name of its own: TensorStore keeps what it knows of a path, also after the path is deleted
        new = self.dir / f".{RESUME}.new-{meta['update']}"
        if self._hosts.is_first:
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir(parents=True)
        self._hosts.gather("checkpoint folder", None)
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(new.absolute() / STATE, state)
            checkpointer.wait_until_finished()
        self._hosts.gather("part of the checkpoint", None)
        if self._hosts.is_first:
            _write_durably(new / META, json.dumps({"format": FORMAT, **meta}, indent=1))
            if not self.resume_only:
                self._publish_numbered(new, meta["update"])
            self._finish_publication()
            self._prune()
        self._hosts.gather("checkpoint", None)

    def newest(self) -> Path | None:
        """The whole checkpoint with the highest update, or None."""
        # a numbered one first, which stays where it is when the run saves the next
        whole = [p for p in (*self._numbered().values(), self.dir / RESUME, self._old) if is_checkpoint(p)]
        newest = max(whole, key=lambda p: read_meta(p)["update"], default=None)
        found = self._hosts.gather("newest checkpoint", newest and newest.name)
        if len(set(found)) > 1:
            raise CheckpointError(f"the hosts see different checkpoints in {self.dir}: {found}; it must be shared")
        return newest

    def set_aside_after(self, update: int) -> list[Path]:
        """Renames what is past `update`, so that no later resume mistakes it for this run's; returns the new paths.

        It is there when a run starts over, or goes on from an earlier checkpoint, in the folder of another.
        """
        if not self._hosts.is_first:
            return []
        checkpoints = [p for p in (*self._numbered().values(), self.dir / RESUME) if is_checkpoint(p)]
        renamed = [move_aside(p) for p in checkpoints if read_meta(p)["update"] > update]
        return [path for path in renamed if path is not None]

    def _numbered(self) -> dict[int, Path]:
        names = {p: re.fullmatch(r"checkpoint-(\d+)", p.name) for p in self.dir.glob("checkpoint-*")}
        return {int(m.group(1)): p for p, m in names.items() if m}

    def _publish_numbered(self, new: Path, update: int) -> None:
        target, building = self.dir / f"checkpoint-{update}", self.dir / f".checkpoint-{update}.new"
        shutil.rmtree(building, ignore_errors=True)
        shutil.copytree(new, building, copy_function=_link_or_copy)
        _remove_whole(target)  # a resumed run writes this update's again
        os.rename(building, target)

    def _finish_publication(self) -> None:
        """Moves a whole new folder into place. Also mends what a kill between two renames left behind."""
        current, unpublished = self.dir / RESUME, list(self.dir.glob(f".{RESUME}.new-*"))
        whole = [p for p in unpublished if is_checkpoint(p)]
        newest = max(whole, key=lambda p: read_meta(p)["update"], default=None)  # read before anything is moved
        if newest is not None:
            shutil.rmtree(self._old, ignore_errors=True)
            if current.exists():
                os.rename(current, self._old)
            os.rename(newest, current)
        elif self._old.exists() and not current.exists():
            os.rename(self._old, current)
        for leftover in (*unpublished, self._old, *self.dir.glob(".checkpoint-*.*")):
            shutil.rmtree(leftover, ignore_errors=True)

    def _prune(self) -> None:
        if self.keep_last:
            numbered = self._numbered()
            for update in sorted(numbered)[: -self.keep_last]:
                _remove_whole(numbered[update])


def is_checkpoint(path: Path) -> bool:
    return (path / META).is_file() and (path / STATE).is_dir()


def read_meta(path: Path) -> dict:
    """`meta.json` of a checkpoint folder; CheckpointError when it is not one."""
    if not is_checkpoint(path):
        found = "does not exist" if not path.exists() else f"has no {META} and {STATE}/"
        raise CheckpointError(f"{path} is not a checkpoint: it {found}. Name a checkpoint-N or {RESUME} folder.")
    try:
        return json.loads((path / META).read_text())
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path / META} cannot be read: {error}") from error


def restore(path: Path, like: Any, stored: Any = None) -> tuple[Any, dict]:
    """State and meta of a checkpoint.

    Args:
        like: a tree of arrays or shapes with the wanted shardings; what it leaves out is not read.
        stored: the shapes that the checkpoint must have, where these differ: another mesh may hold parameters with more
            or fewer zeros at their end, which are cut off or filled in. None: those of `like`.
    """
    meta, state = read_meta(path), path.absolute() / STATE
    # an array that is held with more or fewer zeros at its end is not a mistake: shapes are compared here
    how = ocp.checkpoint_utils.construct_restore_args(like, strict=False)
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            _compare_shapes(path, checkpointer.metadata(state).item_metadata.tree, like if stored is None else stored)
            args = ocp.args.PyTreeRestore(item=like, restore_args=how, partial_restore=True)
            return checkpointer.restore(state, args=args), meta
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"{path} does not fit this model and optimizer: {error}") from error


def _compare_shapes(path: Path, found: Any, expected: Any) -> None:
    shapes = {leaf_name(key): tuple(leaf.shape) for key, leaf in jax.tree_util.tree_leaves_with_path(found)}
    wanted = {leaf_name(key): tuple(leaf.shape) for key, leaf in jax.tree_util.tree_leaves_with_path(expected)}
    problems = [
        f"{name} {shapes.get(name)} instead of {shape}" for name, shape in wanted.items() if shapes.get(name) != shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(f"{path} does not fit this model and optimizer: {', '.join(problems[:3])}{more}")


def leaf_name(key: tuple[Any, ...]) -> str:
    """The name of an array in a tree, such as `params/blocks/0/mlp/up_proj`."""
    return jax.tree_util.keystr(key, simple=True, separator="/")


def _remove_whole(path: Path) -> None:
    """Deletes a folder so that a kill half-way leaves no half folder under its name."""
    if path.exists():
        hidden = path.with_name(f".{path.name}.old")
        shutil.rmtree(hidden, ignore_errors=True)
        os.rename(path, hidden)
        shutil.rmtree(hidden)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)


def _write_durably(path: Path, text: str) -> None:
    """The file is there whole or not at all: with its meta.json a folder counts as a checkpoint."""
    part = path.with_name(f"{path.name}.part")
    with open(part, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
