"""Places that a tool writes to: refused before the work where nothing can be written, and filled whole or not at all.

Needs neither torch nor a toolkit.
"""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from convnext_dense.durable import publish
from convnext_dense.errors import UserError

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)
# How libraries say it without an error of the system: torch, and what is written in C++ or Rust.
WORDS = ('PytorchStreamWriter', 'unexpected pos', 'No space left on device', 'Read-only file system')


def check_file_output(path: Path, *, inputs: Iterable[str | Path] = (), overwrite: bool = False) -> None:
    """Refuse, before any work, a file that exists or cannot be written.

    Args:
        path: The file to write.
        inputs: What the tool reads: never a file to write, not even with ``overwrite``.
        overwrite: The user wants an existing file to be replaced.

    Raises:
        UserError: The file is an input, exists, is a folder, or is in a place where nothing can be written.
    """
    for source in inputs:
        if path.exists() and Path(source).exists() and path.samefile(source):
            raise UserError(f'{path} is the file that is read: give another file to write')
    if path.is_dir():
        raise UserError(f'{path} is a folder, but a file is written here: add a file name')
    if path.exists() and not path.is_file():
        raise UserError(f'{path} is a device or another special file, which cannot be replaced: give another file')
    if (path.exists() or path.is_symlink()) and not overwrite:
        raise UserError(f'{path} exists already: give another name, or replace it by --overwrite')
    _check_folder_takes_files(path.absolute().parent, path)


def check_folder_output(path: Path, *, overwrite: bool = False) -> None:
    """Refuse, before any work, a folder that is in use or cannot be written.

    Args:
        path: The folder to fill; it need not exist.
        overwrite: The user wants files in it to be replaced.

    Raises:
        UserError: It is a file, is not empty, or is in a place where nothing can be written.
    """
    if path.exists() and not path.is_dir():
        raise UserError(f'{path} is a file: give a new folder, nothing was written')
    _check_folder_takes_files(path.absolute(), path)
    if path.is_dir() and any(path.iterdir()) and not overwrite:
        raise UserError(f'{path} is not empty: give a new folder, nothing was written')


def check_work_folder(path: Path) -> None:
    """Refuse, before any work, a folder that several runs may share, if nothing can be written there.

    Raises:
        UserError: It is a file, or is in a place where nothing can be written.
    """
    check_folder_output(path, overwrite=True)


def _check_folder_takes_files(folder: Path, wanted: Path) -> None:
    existing = nearest_existing(folder)
    if not existing.is_dir():
        raise UserError(f'{wanted} cannot be created, because {existing} is a file: give another path')
    try:
        write_probe(existing)
    except OSError as error:
        raise UserError(write_failure(wanted, error)) from error


def nearest_existing(path: Path) -> Path:
    """Return the path, or the nearest one above it that exists; a link that leads nowhere exists."""
    path = path.absolute()
    return next(part for part in (path, *path.parents) if part.exists() or part.is_symlink())


def write_probe(folder: Path) -> None:
    """Write a byte into a folder and leave nothing: permissions alone do not tell a full disk from a free one.

    Raises:
        OSError: Nothing can be written there.
    """
    with tempfile.TemporaryFile(dir=folder) as probe:
        probe.write(b'0')
        probe.flush()


def write_failure(path: object, error: BaseException) -> str:
    """Return the sentence for an error of the system that has kept ``path`` from being written."""
    reason = getattr(error, 'strerror', None) or ' '.join(str(error).split())[:100]
    if not isinstance(error, OSError) or error.errno in NO_SPACE:
        return f'{path} cannot be written ({reason}): free space there, or give another place'
    return f'{path} cannot be written ({reason}): give a place that you may write'


def is_write_failure(error: BaseException) -> bool:
    """Return whether the system has kept something from being written, in the words of any library."""
    if isinstance(error, OSError) and error.errno in (*NO_SPACE, *NOT_WRITABLE):
        return True
    return any(text in str(error) for text in WORDS)


@contextmanager
def name_work_folder(folder: str | Path) -> Iterator[None]:
    """Name the work folder where the disk is full and the system does not say which file it could not write.

    Raises:
        UserError: So it is.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in NO_SPACE or error.filename:
            raise
        raise UserError(write_failure(f'a file, most likely in the work folder {folder},', error)) from error


@contextmanager
def whole_files(path: Path) -> Iterator[Path]:
    """Give a path of the same name in a hidden folder beside ``path``, and move what was written there when all is.

    Files of other names that a library writes beside it move too, before it. Whatever ends the block otherwise,
    ``path`` is as it was and nothing is left.

    Raises:
        UserError: The system cannot write it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix='.partial-', dir=path.parent) as folder:
            main = Path(folder) / path.name
            yield main
            for file in sorted(Path(folder).iterdir(), key=lambda file: file == main):
                publish(file, path.with_name(file.name))
    except Exception as error:  # torch, onnx and safetensors have errors of their own for a full disk
        if isinstance(error, UserError) or not is_write_failure(error):
            raise
        raise UserError(write_failure(path, error)) from error
