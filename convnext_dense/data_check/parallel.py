"""Look at many files in several processes, with a progress bar on a terminal."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from mmengine.utils import track_iter_progress

FEW_FILES = 64  # so many are done before other processes have started
FILES_PER_TASK = 64
MAX_PROCESSES = 16

Item = TypeVar('Item')
Result = TypeVar('Result')


def map_files(function: Callable[[Item], Result], items: Sequence[Item], title: str) -> list[Result]:
    """Return ``function(item)`` of every item, in their order.

    Args:
        function: A function of a module, or a partial one; it runs in other processes if there are many items.
        items: What it is called with.
        title: What the progress bar is about.
    """
    num_processes = min(_num_cores(), MAX_PROCESSES)
    if len(items) <= FEW_FILES or num_processes == 1:
        return list(_with_progress(map(function, items), len(items), title))
    # Forked processes have everything imported already.
    method = 'fork' if 'fork' in multiprocessing.get_all_start_methods() else 'spawn'
    with multiprocessing.get_context(method).Pool(num_processes) as pool:
        return list(_with_progress(pool.imap(function, items, FILES_PER_TASK), len(items), title))


def _num_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def _with_progress(results: Iterable[Result], count: int, title: str) -> Iterator[Result]:
    """Iterate, with a title and a progress bar on a terminal."""
    if not sys.stdout.isatty():
        return iter(results)
    print(title)
    return track_iter_progress((results, count))
