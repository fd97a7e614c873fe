"""Remember findings of a split until one of its files changes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from convnext_dense.data_check.findings import Finding
from convnext_dense.version import __version__

Stamp = tuple[int, int] | None  # size and mtime_ns of a file; None if it does not exist


def cache_folder() -> Path:
    """Return the folder of all caches of this package."""
    return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'convnext_dense' / 'data_check'


def stamp(path: str | Path) -> Stamp:
    """Return size and time of the last change of a file."""
    try:
        status = Path(path).stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def recall(settings: Any) -> list[Finding] | None:
    """Return the findings of an earlier check under the same settings if no file has changed since.

    Args:
        settings: Everything but the files that findings depend on, as JSON.
    """
    try:
        entry = json.loads(_entry_file(settings).read_text())
        for path, old in entry['files']:
            now = stamp(path)
            if old != (now and list(now)):
                return None
        return [Finding(**dict(finding, records=tuple(finding['records']))) for finding in entry['findings']]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # no such entry, or one that another version or an accident has left


def remember(settings: Any, files: Sequence[tuple[str, Stamp]], findings: Sequence[Finding]) -> None:
    """Keep findings.

    Args:
        settings: As for :func:`recall`.
        files: Every file that was read, with its stamp of before.
        findings: What was found.
    """
    file = _entry_file(settings)
    unfinished = file.with_suffix(f'.{os.getpid()}')
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(json.dumps(dict(files=files, findings=[asdict(finding) for finding in findings])))
        unfinished.replace(file)
    except OSError:
        return  # a read-only home: the next run checks again


def _entry_file(settings: Any) -> Path:
    """Return the file of an entry, named by its settings and the version of this package."""
    text = json.dumps([__version__, settings], sort_keys=True, default=str)
    return cache_folder() / f'{hashlib.sha256(text.encode()).hexdigest()[:32]}.json'
