"""Faults are injected into the real tools: in forked children of this process, or in fresh processes."""

from __future__ import annotations

import importlib
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

# What a training imports is imported once, before the forks.
for module in ('convnext_dense.run.train_test', 'matplotlib.pyplot', 'mmcv.ops', 'setuptools'):
    importlib.import_module(module)

TOY = Path(__file__).with_name('toy.py')


@dataclass
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
        """The sentence that it ended with."""
        return next(line for line in self.text.splitlines() if line.startswith('error: '))


def run_forked(name: str, *args: object, log: Path, inject: Callable[[], None] | None = None) -> Outcome:
    """Run ``tools/NAME.py ARGS`` in a child of this process, which has imported everything already.

    Args:
        log: Takes what the tool prints.
        inject: Called in the child before the tool starts.
    """
    sys.stdout.flush()
    child = os.fork()
    if not child:
        _run_and_exit(name, args, log, inject)
    deadline = time.time() + 300
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return Outcome(os.waitstatus_to_exitcode(status), log.read_text())
        if time.time() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            pytest.fail(f'tools/{name}.py did not end: {log.read_text()[-2000:]}')
        time.sleep(0.01)


def _run_and_exit(name: str, args: tuple, log: Path, inject: Callable[[], None] | None) -> None:
    status = 1
    try:
        with log.open('w', buffering=1) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            sys.stdout = sys.stderr = file
            torch.set_num_threads(1)  # threads of OpenMP do not outlive a fork
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


@pytest.fixture
def train(tmp_path):
    """Train the toy in a forked child: ``train(*options, change=[...])``; the work folder is ``tmp_path / 'work'``."""
    counter = iter(range(1000))

    def run(*options: object, change: tuple | list = (), config: Path = TOY, inject=None, work='work') -> Outcome:
        changes = ['--cfg-options', *change] if change else []
        return run_forked(
            'train', config, '--work-dir', tmp_path / work, '--no-data-check', *options, *changes,
            log=tmp_path / f'train_{next(counter)}.txt', inject=inject,
        )  # fmt: skip

    return run


@pytest.fixture
def test_tool(tmp_path):
    """Test the toy with a checkpoint in a forked child."""
    counter = iter(range(1000))

    def run(checkpoint: Path, *options: object, change: tuple | list = (), inject=None) -> Outcome:
        changes = ['--cfg-options', *change] if change else []
        return run_forked(
            'test', TOY, checkpoint, '--work-dir', tmp_path / 'tested', '--no-data-check', *options, *changes,
            log=tmp_path / f'test_{next(counter)}.txt', inject=inject,
        )  # fmt: skip

    return run


@pytest.fixture(scope='session')
def trained(tmp_path_factory) -> Path:
    """The work folder of a finished training of one epoch: to be copied, not changed."""
    folder = tmp_path_factory.mktemp('trained') / 'work'
    log = folder.with_name('log.txt')
    outcome = run_forked(
        'train', TOY, '--work-dir', folder, '--no-data-check', '--cfg-options', 'train_cfg.max_epochs=1', log=log
    )
    assert outcome.status == 0, outcome.text
    return folder
