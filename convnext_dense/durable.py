"""Write files so that a reader finds the old content or the new one, whole, whatever ends the program meanwhile."""

from __future__ import annotations

import os
from pathlib import Path

TEMPORARY = '.tmp'  # ends the name of a file that is being written


def write_durably(path: Path, content: bytes | str) -> None:
    """Write ``content`` to a temporary file next to ``path``, force it to the disk and rename it to ``path``.

    Raises:
        OSError: The content could not be written; ``path`` is as it was and the temporary file is removed.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        with temporary.open('wb') as file:
            file.write(data)
        publish(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def publish(temporary: Path, path: Path) -> None:
    """Force the content of a complete file to the disk and rename it to ``path``, on the same file system."""
    with temporary.open('rb') as file:
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Force the names in ``folder`` to the disk: a rename lasts through a loss of power only then."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        pass  # file systems that cannot sync a folder, such as some network shares
    finally:
        os.close(descriptor)
