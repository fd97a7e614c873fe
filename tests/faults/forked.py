"""Run the real tools in forked children of this process, which has imported everything, both toolkits too: 16 s."""

from __future__ import annotations

import importlib
import importlib.util
import os
import runpy
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from helpers import ROOT, without_page

for module in ('convnext_dense.run.train_test', 'matplotlib.pyplot', 'mmcv.ops', 'setuptools'):
    importlib.import_module(module)
for toolkit in ('mmdet', 'mmseg'):
    if importlib.util.find_spec(toolkit):
        importlib.import_module(f'{toolkit}.utils').register_all_modules(init_default_scope=False)

LONGEST = 600  # seconds that a test waits for a process: much more than it takes on a machine of its own


@dataclass(frozen=True)
class Outcome:
    """How a tool ended.

    Attributes:
        status: Its exit status; negative, the number of the signal that ended it.
        text: What it printed, stdout and stderr.
    """

    status: int
    text: str

    @property
    def error(self) -> str:
        """All that it printed from the sentence on that it ended with."""
        lines = self.text.splitlines()
        first = next(number for number, line in enumerate(lines) if line.startswith('error: '))
        return '\n'.join(lines[first:]).strip()


def run_forked(
    name: str,
    *args: object,
    log: Path,
    inject: Callable[[], None] | None = None,
    data: Path | None = None,
) -> Outcome:
    """Run ``tools/NAME.py ARGS`` in a child of this process.

    Args:
        name, args: The tool and its arguments.
        log: Takes what the tool prints.
        inject: Called in the child before the tool starts.
        data: For CONVNEXT_DENSE_DATA.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if not child:
        _run_and_exit(name, args, log, inject, data)
    deadline = time.time() + LONGEST
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return Outcome(os.waitstatus_to_exitcode(status), log.read_text())
        if time.time() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            pytest.fail(f'tools/{name}.py did not end: {log.read_text()[-2000:]}')
        time.sleep(0.01)


def _run_and_exit(name: str, args: tuple, log: Path, inject: Callable[[], None] | None, data: Path | None) -> None:
    status = 1
    try:
        with log.open('w', buffering=1) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            sys.stdout = sys.stderr = file
            torch.set_num_threads(1)  # threads of OpenMP do not outlive a fork
            if data is not None:
                os.environ['CONVNEXT_DENSE_DATA'] = str(data)
            sys.argv = [f'tools/{name}.py', *map(str, without_page(name, args))]
            sys.path.insert(0, str(ROOT / 'tools'))
            try:
                if inject is not None:
                    inject()
                runpy.run_path(str(ROOT / 'tools' / f'{name}.py'), run_name='__main__')
                status = 0
            except SystemExit as stop:
                if isinstance(stop.code, str):
                    print(stop.code)
                status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
            except BaseException:
                traceback.print_exc()
    finally:
        os._exit(status)
