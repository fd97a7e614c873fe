"""Helpers that several test modules share."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]


def without_page(tool: str, args: Sequence[object]) -> list[object]:
    """Arguments of a tool; ``train.py`` without the page at its end, which tests the checkpoint in a process more."""
    return ['--no-report', *args] if tool == 'train' else list(args)


def start(name: str, *args: object, data: Path) -> subprocess.Popen:
    """Start ``python tools/NAME.py ARGS`` as a user would."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / 'tools' / f'{name}.py'), *map(str, without_page(name, args))],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=dict(os.environ, CONVNEXT_DENSE_DATA=str(data)),
    )


def kill_all(process: subprocess.Popen) -> None:
    """SIGKILL for ``process`` and all that it started: data workers stay behind, torchrun's workers train on."""
    for part in [*psutil.Process(process.pid).children(recursive=True), process]:
        part.kill()
    process.wait()
