"""A folder that appears whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Gives a new folder to fill, which takes the place of `target` when the block ends, and vanishes if it fails.

    The bytes are on the disk before the name is. A kill between the two renames leaves the old folder as
    `.<name>.old`; the next call puts it back first.
    """
    new, old = target.with_name(f".{target.name}.new"), target.with_name(f".{target.name}.old")
    target.parent.mkdir(parents=True, exist_ok=True)
    if old.exists() and not target.exists():
        os.rename(old, target)
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    new.mkdir()
    try:
        yield new
        for path in [*new.rglob("*"), new]:
            _sync(path)
    except BaseException:  # whatever it was, Ctrl-C included, it goes on from here
        shutil.rmtree(new, ignore_errors=True)
        raise
    if target.exists():
        os.rename(target, old)
    os.rename(new, target)
    _sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
