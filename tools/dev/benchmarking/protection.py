"""What the hooks of ours cost in a training step: the subcommand ``protection``.

One training, as tools/train.py runs it. Its steps are taken with the hooks of this package and without them, in turn.
Steps vary by more than the hooks cost, so the time inside the hooks is measured too: on a CPU that is all they cost.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from benchmarking.machine import machine
from convnext_dense.run.train_test import train

SECONDS: dict[str, list[float]] = {'with': [], 'without': [], 'in hooks': []}


class Enough(Exception):
    """All steps are measured."""


@HOOKS.register_module()
class StepStartHook(Hook):
    """Note the time before every other hook of a step."""

    priority = 'HIGHEST'

    def __init__(self) -> None:
        self.in_hooks = 0.0  # seconds since the step began
        self.wrapped = False

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        if not self.wrapped:
            self._time_hooks(runner)
        self.in_hooks = 0.0
        self.begin = time.perf_counter()

    def _time_hooks(self, runner: Runner) -> None:
        """Let the hooks of this package add up their time."""
        self.wrapped = True
        for hook in runner.hooks:
            if type(hook).__module__.startswith('convnext_dense'):
                hook.before_train_iter = self._timed(hook.before_train_iter)
                hook.after_train_iter = self._timed(hook.after_train_iter)
        for registered in (runner.model._forward_hooks, runner.optim_wrapper.optimizer._optimizer_step_pre_hooks):
            for key, function in registered.items():
                registered[key] = self._timed(function)

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.in_hooks += time.perf_counter() - begin

        return call


@HOOKS.register_module()
class StepEndHook(Hook):
    """Add the time of a step behind every other hook, and switch the hooks of this package on or off for the next.

    Args:
        steps: To measure in each way.
        warmup: Steps before, in both ways together.
    """

    priority = 'LOWEST'

    def __init__(self, steps: int, warmup: int) -> None:
        self.steps, self.warmup = steps, warmup
        self.switched_off: dict[str, Any] = {}

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        start = next(hook for hook in runner.hooks if isinstance(hook, StepStartHook))
        seconds = time.perf_counter() - start.begin
        if self.warmup:
            self.warmup -= 1
        else:
            SECONDS['without' if self.switched_off else 'with'].append(seconds)
            if not self.switched_off:
                SECONDS['in hooks'].append(start.in_hooks)
        if len(SECONDS['with']) >= self.steps and len(SECONDS['without']) >= self.steps:
            raise Enough
        self._switch(runner)

    def _switch(self, runner: Runner) -> None:
        """Exchange what is registered: the hooks of the runner, of the model and of the optimizer."""
        optimizer, model = runner.optim_wrapper.optimizer, runner.model
        if self.switched_off:
            runner._hooks = self.switched_off['hooks']
            model._forward_hooks = self.switched_off['forward']
            optimizer._optimizer_step_pre_hooks = self.switched_off['step']
            self.switched_off = {}
            return
        self.switched_off = dict(
            hooks=runner._hooks, forward=model._forward_hooks, step=optimizer._optimizer_step_pre_hooks
        )
        runner._hooks = [hook for hook in runner._hooks if not type(hook).__module__.startswith('convnext_dense')]
        model._forward_hooks, optimizer._optimizer_step_pre_hooks = OrderedDict(), OrderedDict()


def run(args: argparse.Namespace, argv: Sequence[str]) -> None:
    """Measure, print and write the figures.

    Args:
        args: Parsed arguments of the subcommand.
        argv: As given, for the file.
    """
    hooks = [dict(type='StepStartHook'), dict(type='StepEndHook', steps=args.rounds, warmup=2 * args.warmup)]
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / 'config.py'
        config.write_text(f'_base_ = [{str(Path(args.config).absolute())!r}]\ncustom_hooks = {hooks!r}\n')
        try:
            train(str(config), cfg_options=args.cfg_options, work_dir=folder)
        except Enough:
            pass
        else:
            raise SystemExit('error: the training was shorter than the steps to measure: give fewer --rounds')
    rows = {
        name: dict(min=min(values), median=statistics.median(values), seconds=values)
        for name, values in SECONDS.items()
    }
    pairs = [one / other for one, other in zip(SECONDS['with'], SECONDS['without'], strict=False)]
    result = dict(
        command=f'python tools/dev/benchmark.py {" ".join(argv)}',
        machine=machine(torch.device('cpu')),
        rows=rows,
        ratio_of_minima=rows['with']['min'] / rows['without']['min'],
        ratio_of_medians=rows['with']['median'] / rows['without']['median'],
        median_ratio_of_neighbours=statistics.median(pairs),
        percent_of_a_step=100 * rows['in hooks']['median'] / rows['with']['median'],
    )
    print(json.dumps({**result, 'rows': {name: (row['min'], row['median']) for name, row in rows.items()}}, indent=1))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + '\n')
