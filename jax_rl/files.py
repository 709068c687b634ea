"""What several rooms do with files."""

import os
from pathlib import Path


def move_aside(path: Path) -> Path | None:
    """Renames a file or folder of an earlier run to `<name>.old-N`, so that nothing is written over.

    Returns the new path; None where there is nothing, or an empty file.
    """
    if not path.exists() or (path.is_file() and path.stat().st_size == 0):
        return None
    number = 1
    while (target := path.with_name(f"{path.name}.old-{number}")).exists():
        number += 1
    os.rename(path, target)
    return target
