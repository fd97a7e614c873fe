"""A training that can be watched: trackers of experiments, a progress bar, and what helps when memory runs out."""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.visualization import Visualizer

from convnext_dense.errors import DiagnosableError, UserError

# mmengine's own backends: the type of each, and the package that it needs.
TRACKERS = {
    'tensorboard': ('TensorboardVisBackend', 'tensorboard'),
    'mlflow': ('MLflowVisBackend', 'mlflow'),
    'wandb': ('WandbVisBackend', 'wandb'),
    'clearml': ('ClearMLVisBackend', 'clearml'),
    'neptune': ('NeptuneVisBackend', 'neptune'),
    'dvclive': ('DVCLiveVisBackend', 'dvclive'),
    'aim': ('AimVisBackend', 'aim'),
}
# How torch says that memory ran out; on CPUs by a RuntimeError.
CPU_MEMORY_ERRORS = ("can't allocate memory", 'not enough memory', 'std::bad_alloc')
BAR_WIDTH = 30
SECONDS_PER_DRAWING = 0.5


def add_trackers(cfg: Config, names: Sequence[str]) -> None:
    """Let a run be followed in trackers of experiments, besides the files that it writes anyway.

    Args:
        cfg: Changed in place; has a ``work_dir``.
        names: Keys of :data:`TRACKERS`.

    Raises:
        UserError: A tracker is unknown or not installed, or the config has no visualizer.
    """
    for name in names:
        if name not in TRACKERS:
            raise UserError(f'--track {name}: there is no such tracker, use {", ".join(TRACKERS)}')
        type_name, package = TRACKERS[name]
        if importlib.util.find_spec(package) is None:
            raise UserError(f'--track {name} needs the package {package}: pip install {package}')
        if not cfg.get('visualizer'):
            raise UserError('--track: the config has no visualizer, which writes to trackers: add it')
        backends = list(cfg.visualizer.get('vis_backends') or [dict(type='LocalVisBackend')])
        if all(backend['type'] != type_name for backend in backends):
            options = _mlflow_options(Path(cfg.work_dir).resolve()) if name == 'mlflow' else {}
            cfg.visualizer.vis_backends = [*backends, dict(type=type_name, **options)]


def _mlflow_options(work_dir: Path) -> dict[str, Any]:
    """Return where mlflow writes: to the server that its own variable names, or to a database in the work folder.

    mmengine's backend takes neither: it writes a folder of files, which mlflow refuses from version 3.17 on.
    """
    server = os.environ.get('MLFLOW_TRACKING_URI')
    if server:
        return dict(exp_name=work_dir.name, tracking_uri=server)
    # An experiment of another name than Default, which exists and keeps its files in the current folder.
    return dict(
        exp_name=work_dir.name,
        tracking_uri=f'sqlite:///{work_dir}/mlflow.db',
        artifact_location=(work_dir / 'mlflow').as_uri(),
        artifact_suffix=(),  # copies of files beside it: none, which would grow with every resume
    )


def use_own_visualizer(cfg: Config) -> None:
    """Give the visualizer of a run a name that no run of this process has had.

    mmengine keeps one visualizer per name and process: a second run with the same name would write its scalars and
    pictures into the folder of the first one.

    Args:
        cfg: Changed in place, only where the name is taken. A visualizer without a name gets the runner's.
    """
    visualizer: Any = cfg.get('visualizer') or {}
    name = visualizer.get('name')
    if name is None:
        return
    number = 1
    while Visualizer.check_instance_created(visualizer.name):
        number += 1
        visualizer.name = f'{name}_{number}'


class ProgressHook(Hook):
    """Draw a bar with the time left in the last line of a terminal; log lines scroll above it.

    It is drawn before an iteration and removed after it, before a line may be logged.
    """

    priority = 'VERY_HIGH'

    def __init__(self) -> None:
        self._begin = 0.0
        self._first = 0
        self._drawn = 0.0

    def before_train(self, runner: Runner) -> None:
        self._begin, self._first = time.time(), runner.iter

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        now = time.time()
        if not is_main_process() or now - self._drawn < SECONDS_PER_DRAWING:
            return
        self._drawn = now
        sys.stdout.write(progress_line(runner.iter, runner.max_iters, self._first, now - self._begin) + '\r')
        sys.stdout.flush()

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Mapping[str, Any] | None = None
    ) -> None:
        if is_main_process():
            sys.stdout.write('\033[K')  # to the end of the line


def progress_line(done: int, total: int, first: int, seconds: float) -> str:
    """Return a bar with what is done and the time left.

    Args:
        done, total: Iterations.
        first: The iteration at which this run began.
        seconds: Since then.
    """
    filled = BAR_WIDTH * done // max(total, 1)
    bar = '#' * filled + ' ' * (BAR_WIDTH - filled)
    left = ''
    if done > first:
        left = f', {timedelta(seconds=round(seconds / (done - first) * (total - done)))} left'
    return f'[{bar}] {done:,} of {total:,} iterations{left}'


@contextmanager
def memory_errors() -> Iterator[None]:
    """Turn running out of memory into a sentence with the arguments that help.

    Raises:
        DiagnosableError: The GPU, or the machine, has no memory left.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise DiagnosableError(_advice('the GPU', error)) from error
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and not any(text in str(error) for text in CPU_MEMORY_ERRORS):
            raise
        raise DiagnosableError(_advice('this machine', error)) from error


def _advice(where: str, error: BaseException) -> str:
    reason = ' '.join(str(error).split('.')[0:2]).strip() or 'out of memory'
    return (
        f'{where} has too little memory for this run ({reason}): use one or more of --amp, '
        '--cfg-options model.backbone.memory=checkpoint and --cfg-options train_dataloader.batch_size=1 '
        '(with --auto-scale-lr)'
    )
