"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, content: bytes, partial: Path | None = None) -> None:
    """Write under a temporary name (`partial`) to the disk, then rename, and bring the name to the disk too.

    Raises:
        OSError: it could not be written; what was written of it is gone, and an older file stands as it was.
    """
    partial = partial or path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        # A full disk's error has no name, and what was written of it would fill the disk further.
        partial.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error
    os.replace(partial, path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
