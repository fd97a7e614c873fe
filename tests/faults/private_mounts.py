"""Places that are full or read-only, as mounts in a namespace of a child process: nobody else sees them."""

from __future__ import annotations

import ctypes
import os
import subprocess
from pathlib import Path

NEW_MOUNT_NAMESPACE = 0x00020000  # CLONE_NEWNS of sched.h
# Options of a tmpfs. The full one has a page, which a file fills.
OPTIONS = {'full': 'size=4096', 'read-only': 'ro'}


def mount(place: Path, options: str) -> None:
    """Put a new tmpfs on a folder, for this process and its children alone.

    Raises:
        OSError: This process may not do so.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(NEW_MOUNT_NAMESPACE):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    try:
        subprocess.run(['mount', '--make-rprivate', '/'], check=True, capture_output=True)
        subprocess.run(['mount', '-t', 'tmpfs', '-o', options, 'tmpfs', place], check=True, capture_output=True)
    except subprocess.CalledProcessError as error:
        raise OSError(error.stderr.decode().strip()) from error


def mount_unusable(place: Path, kind: str) -> None:
    """Make a folder one of :data:`OPTIONS`."""
    mount(place, OPTIONS[kind])
    if kind == 'full':
        (place / 'filler').write_bytes(bytes(4096))


def reason_against(place: Path) -> str:
    """Return why mounts cannot be made here; empty if they can."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            mount(place, 'size=4096')
            reason = ''
        except OSError as error:
            reason = str(error) or 'mount failed'
        os.write(writing, reason.encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading) as pipe:
        return pipe.read()
