"""The subcommands of tools/dev/benchmark.py: measure, print, write."""

from __future__ import annotations

import argparse
import json
import shlex
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import MMLogger

from benchmarking import loading, protection, rule, whole_model
from benchmarking.memory import peak_memory
from benchmarking.options import Options, options_of, outputs_of
from benchmarking.report import plot_scaling, report
from benchmarking.rows import choose_rows
from benchmarking.subjects import Subject, Task
from benchmarking.timing import measure_optimizer, measure_scaling, measure_time, memory_in_process, profile

SCRIPT = Path(__file__).resolve().parents[1] / 'benchmark.py'


def run(args: argparse.Namespace, argv: Sequence[str]) -> None:
    """Run a subcommand.

    Args:
        args: Its parsed arguments.
        argv: Its arguments as given, for the file and for other processes.

    Raises:
        UserError: Something given cannot be used.
    """
    if args.command == 'loading':
        loading.run(args.arch, args.repeats, args.json, args.measure)
        return
    if args.command == 'protection':
        protection.run(args, argv)
        return
    if args.command == 'rule':
        rule.run(args, argv)
        return
    if args.command == 'whole-model':
        whole_model.run(args, argv)
        return
    options, outputs = options_of(args), outputs_of(args)
    warnings.filterwarnings('ignore')
    MMLogger.get_instance('mmengine', log_level='WARNING')
    if options.threads:
        torch.set_num_threads(options.threads)
    if outputs.memory_of:
        _print_memory(options, outputs.memory_of)
        return
    result = _measure(options, argv)
    text = report(result)
    print('\n' + text)
    if outputs.plot:
        plot_scaling(result, outputs.plot)
    _write(outputs.json, json.dumps(result, indent=1, default=str) + '\n')
    _write(outputs.markdown, text)


def _print_memory(options: Options, key: str) -> None:
    """Print the peak memory of one row: the work of a separate process."""
    (batch,), (size,) = options.batch, options.size
    row = next(row for row in choose_rows(options) if row.key == key)
    print(json.dumps(peak_memory(Subject(row, Task(options, batch, size)))))


def _measure(options: Options, argv: Sequence[str]) -> dict[str, Any]:
    command = f'python tools/dev/benchmark.py {shlex.join(argv)}'
    if options.command == 'optimizer':
        return measure_optimizer(options, command)
    if options.command == 'profile':
        return profile(options, command)
    memory_of = memory_in_process(str(SCRIPT), argv)
    if options.command == 'scaling':
        return measure_scaling(options, command, memory_of)
    return measure_time(options, command, memory_of)


def _write(path: Path | None, content: str) -> None:
    """Write a file, if one is wanted, and its folder."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
