"""Where a model's files are, and what tells two of them apart."""

import hashlib
import importlib.metadata
import os

_WHOLE_BYTES = 1 << 20  # files up to this size are read whole for the fingerprint
_BLOCKS, _BLOCK_BYTES = 16, 1 << 16  # of larger ones, this many blocks


def find_folder(name: str, files: list[str] | None = None) -> str:
    """The folder `name`, or the local snapshot of the hub's `name` (fetched when needed; only what matches `files`)."""
    if os.path.isdir(name):
        return name
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise FileNotFoundError(f"there is no folder {name}")
    from huggingface_hub import snapshot_download

    return snapshot_download(name, allow_patterns=files)


def fingerprint(folder: str) -> str:
    """A hash over the names, sizes and contents of the folder's files; of large files, 16 blocks of 64 KiB.

    Times of change do not count, so a copy has the same one. Training moves nearly every weight, so blocks are enough.
    """
    digest = hashlib.sha256()
    for path in sorted(_files(folder)):
        size = os.path.getsize(path)
        digest.update(f"{os.path.relpath(path, folder)}\0{size}\0".encode())
        with open(path, "rb") as file:
            if size <= _WHOLE_BYTES:
                digest.update(file.read())
                continue
            for block in range(_BLOCKS):
                file.seek((size - _BLOCK_BYTES) * block // (_BLOCKS - 1))
                digest.update(file.read(_BLOCK_BYTES))
    return digest.hexdigest()[:16]


def library_versions(*packages: str) -> dict[str, str]:
    return {package: importlib.metadata.version(package) for package in packages}


def _files(folder: str) -> list[str]:
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [os.path.join(parent, name) for name in files if not name.startswith(".")]
    return found
