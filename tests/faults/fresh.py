"""Run the real tools in fresh processes, to be killed or asked to end."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from conftest import TOY
from helpers import ROOT
from test_distributed import free_port

# Longer than any test takes.
LONG = ('train_cfg.max_epochs=200', 'default_hooks.checkpoint.interval=200', 'train_dataloader.num_workers=2')


def start(command: list, work: Path, options: Sequence[str] = LONG, until: str = '(train)') -> subprocess.Popen:
    """Start a training in a process group of its own.

    Args:
        command: A tool or script, with the config.
        work: The work folder.
        options: Changes of the config.
        until: Return when the training has printed this.
    """
    paths = os.pathsep.join([str(TOY.parent), str(ROOT)])
    env = dict(
        os.environ,
        PYTHONPATH=paths,
        PYTHON=sys.executable,
        PORT=str(free_port()),
        OMP_NUM_THREADS='1',
        MPLBACKEND='Agg',
    )
    process = subprocess.Popen(
        [*map(str, command), '--work-dir', str(work), '--no-data-check', '--cfg-options', *options],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env, start_new_session=True,
    )  # fmt: skip
    seen = []
    for line in process.stdout:
        seen.append(line)
        if until in line:
            return process
    pytest.fail(''.join(seen[-30:]))
