"""Faults are injected into the real tools: in forked children of this process, or in fresh processes."""

from __future__ import annotations

from pathlib import Path

import pytest
from forked import Outcome, run_forked

TOY = Path(__file__).with_name('toy.py')


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
