"""The measurements of steps: whole steps in turn, against size and batch, by operator, and of the optimizer."""

from __future__ import annotations

import gc
import json
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarking.machine import machine, rates, synchronize
from benchmarking.memory import saved_activations
from benchmarking.options import Options
from benchmarking.peers import Official
from benchmarking.reference import Reference
from benchmarking.report import print_header, series
from benchmarking.rows import Row, choose_rows
from benchmarking.subjects import Subject, Task
from convnext_dense import ConvNeXt, ConvNeXtLayerDecayConstructor
from convnext_dense.errors import UserError

# A process that measures the memory of one row: the row, batch and size -> its figures.
MemoryOf = Callable[[Row, int, tuple[int, int]], dict[str, Any]]
SIZE_FACTORS = (1, 0.5, 0.75, 1.5)  # of the sides of images, for scaling from one size
BATCH_FACTORS = (1, 2, 4)
PROFILED_STEPS = 5


# ---- whole steps


def measure_time(options: Options, command: str, memory_of: MemoryOf) -> dict[str, Any]:
    """Time every row, as in the JSON file of the subcommands ``time`` and ``model``.

    Args:
        options: What to measure.
        command: The command line, for the file.
        memory_of: Measures the peak memory of a row.

    Raises:
        UserError: A row does not equal the official formulation, or nothing can be measured.
    """
    (batch,), (size,) = options.batch, options.size
    task = Task(options, batch, size)
    result = header(options, command)
    subjects, result['missing'] = build(choose_rows(options), task)
    differences = _compare(subjects, task, result)
    if task.model is not None and not task.train:
        _add_detections(result, task, subjects)
    result['gflop'] = count_gflop(task)
    seconds = time_in_turn(subjects, options.rounds, options.warmup)
    figures = summarize(seconds, {dtype: f'ours {dtype}' for dtype in options.dtype}, batch)
    result['rows'] = []
    for subject in subjects:
        row = subject.row
        entry = dict(
            name=row.name,
            dtype=row.dtype,
            layout=row.layout,
            compiled=row.compiled,
            peer=row.peer,
            differences=differences[row.key],
            **figures[row.key],
        )
        if task.train and not row.compiled:
            entry.update(saved_activations(subject))
        result['rows'].append(entry)
    if options.memory:
        measured_rows = [subject.row for subject in subjects]
        subjects.clear()  # other processes want the memory
        gc.collect()
        for entry, row in zip(result['rows'], measured_rows, strict=True):
            entry.update(memory_of(row, batch, size))
    return result


def header(options: Options, command: str) -> dict[str, Any]:
    """Return the command, its options and the machine."""
    device = torch.device(options.device)
    return dict(command=command, options=asdict(options), machine=machine(device), rates=rates(device))


def build(rows: Sequence[Row], task: Task) -> tuple[list[Subject], dict[str, str]]:
    """Build the rows that this machine has.

    Returns:
        The rows, and why each other peer is missing.

    Raises:
        UserError: Ours cannot be built, or nothing is left.
    """
    subjects, missing = [], {}
    for row in rows:
        try:
            subjects.append(Subject(row, task))
        except (ImportError, UserError) as error:
            if isinstance(error, UserError) and row.peer == 'ours':
                raise
            missing[row.peer] = str(error)
    if not subjects:
        raise UserError(f'nothing is left to measure, missing: {missing}')
    return subjects, missing


def _compare(subjects: Sequence[Subject], task: Task, result: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Compare every row with the official formulation and print the differences."""
    print_header(result, task.changes)
    reference = Reference(task)
    differences = {subject.row.key: reference.check(subject) for subject in subjects}
    for key, found in differences.items():
        print(f'  {key:<32}' + ', '.join(f'{what} {value:.1e}' for what, value in found.items()))
    return differences


def _add_detections(result: dict[str, Any], task: Task, subjects: Sequence[Subject]) -> None:
    """Scale the classifiers of a detector and add how much it finds."""
    chosen = subjects[0]
    for subject in subjects:
        if subject.row.peer == 'ours':
            chosen = subject
            break
    with torch.no_grad():
        task.sharpen(chosen.backbone)
        predictions = chosen.step()
    if 'pred_instances' in predictions[0]:
        detections = statistics.fmean(len(sample.pred_instances) for sample in predictions)
        result['detections_per_image'] = detections
        print(f'detections an image: {detections:.0f} (random weights, classifiers scaled up)')


def time_in_turn(subjects: Sequence[Subject], rounds: int, warmup: int) -> dict[str, list[float]]:
    """Time the rows in turn, A B C A B C ...; return the seconds of each round by row."""
    for subject in subjects:
        for _ in range(warmup):
            subject.step()
            subject.clear()
    seconds: dict[str, list[float]] = {subject.row.key: [] for subject in subjects}
    for _ in range(rounds):
        for subject in subjects:
            seconds[subject.row.key].append(subject.seconds())
        gc.collect()
    return seconds


def summarize(
    seconds: Mapping[str, list[float]], reference_keys: Mapping[str, str], images: int
) -> dict[str, dict[str, Any]]:
    """Summarize the rounds of each row.

    Args:
        seconds: Seconds of each round by row.
        reference_keys: Our row of each dtype.
        images: Images of a step.

    Returns:
        By row: minimum, median, mean, spread (between the quartiles, over the median), images per second, and the
        ratios of minimum and median to our rows; above 1, ours is faster.
    """
    figures: dict[str, dict[str, Any]] = {}
    for key, times in seconds.items():
        low, high = min(times), max(times)
        if len(times) > 3:
            low, _, high = statistics.quantiles(times, n=4)
        median = statistics.median(times)
        figures[key] = dict(
            seconds=times,
            min=min(times),
            median=median,
            mean=statistics.fmean(times),
            max=max(times),
            spread=(high - low) / median,
            images_per_second=images / min(times),
        )
        for dtype, reference in reference_keys.items():
            if reference in seconds:
                figures[key][f'ratio_min_{dtype}'] = min(times) / min(seconds[reference])
                figures[key][f'ratio_median_{dtype}'] = median / statistics.median(seconds[reference])
    return figures


def count_gflop(task: Task, kinds: tuple[type, ...] = (nn.Conv2d, nn.Linear)) -> float:
    """Count the products and convolutions of one step of the backbone.

    Args:
        task: What is measured.
        kinds: The layers to count.

    Returns:
        GFLOP, multiply and add counted separately.
    """
    with torch.device('meta'):  # shapes are enough
        model, image = Official(task.depths, task.channels, 0.0, task.v2), torch.empty(task.image.shape)
    products: list[int] = []

    def count(layer: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        products.append(output.numel() * layer.weight[0].numel())

    for module in model.modules():
        if isinstance(module, kinds):
            module.register_forward_hook(count)
    model(image)
    if not task.train:
        return 2 * sum(products) / 1e9
    # Backward: as much again for the weights and for the inputs, but the stem's input needs no gradient.
    stem = products[0] if nn.Conv2d in kinds else 0
    return 2 * (3 * sum(products) - stem) / 1e9


def memory_in_process(script: str, argv: Sequence[str]) -> MemoryOf:
    """Return a function that measures the peak memory of a row in a process of its own.

    Args:
        script: The file of the command line.
        argv: Its arguments.
    """

    def memory_of(row: Row, batch: int, size: tuple[int, int]) -> dict[str, Any]:
        height, width = size
        shape = ['--batch', str(batch), '--size', f'{height}x{width}']
        done = subprocess.run(
            [sys.executable, script, *argv, *shape, '--memory-of', row.key], text=True, capture_output=True
        )
        if done.returncode:
            raise UserError(
                f'the process that measures the memory of {row.key} failed: '
                f'{(done.stderr or done.stdout).strip().splitlines()[-1]}; --no-memory leaves it out'
            )
        return json.loads(done.stdout.splitlines()[-1])

    return memory_of


# ---- by operator

# Operators by what they do; the others are `rest`.
OPERATORS = {
    'matrix products': r'mm|addmm|bmm|_linear_pointwise|linear',
    'convolutions': r'.*convolution.*',
    'LayerNorm': r'.*layer_norm.*',
    'GELU': r'gelu.*',
    'copies': r'copy_|cat|constant_pad_nd|fill_|.*index_(copy|add|select).*|index',
    'sums': r'add_?|sum|mul_?|mean|div_?|pow|sub_?|sqrt_?|rsqrt_?',
}


def profile(options: Options, command: str) -> dict[str, Any]:
    """Measure where the time of a step goes, as in the JSON file of the subcommand ``profile``.

    Args:
        options: What to measure.
        command: The command line, for the file.
    """
    (batch,), (size,) = options.batch, options.size
    task = Task(options, batch, size)
    result = header(options, command)
    subjects, result['missing'] = build(choose_rows(options), task)
    _compare(subjects, task, result)
    result['gflop'] = count_gflop(task)
    linear_gflop = count_gflop(task, (nn.Linear,))
    result['rows'] = []
    for subject in subjects:
        subject.step()
        operators = profile_operators(subject)
        result['rows'].append(
            dict(
                name=subject.row.name,
                dtype=subject.row.dtype,
                peer=subject.row.peer,
                operators=operators,
                total=sum(operators.values()),
                linear_gflop_per_s=linear_gflop / operators['matrix products'] * 1000,
            )
        )
    return result


def profile_operators(subject: Subject) -> dict[str, float]:
    """Return the milliseconds of each kind of operator, in the fastest of several steps under PyTorch's profiler."""
    device = subject.task.device.type
    activity = getattr(torch.profiler.ProfilerActivity, device.upper())
    time_attribute = 'self_cpu_time_total' if device == 'cpu' else 'self_device_time_total'
    steps = []
    for _ in range(PROFILED_STEPS):
        with torch.profiler.profile(activities=[activity]) as profiler:
            subject.step()
        milliseconds = dict.fromkeys((*OPERATORS, 'rest'), 0.0)
        for event in profiler.key_averages():
            milliseconds[_kind_of(event.key)] += getattr(event, time_attribute) / 1000
        steps.append(milliseconds)
        subject.clear()
    return min(steps, key=lambda milliseconds: sum(milliseconds.values()))


def _kind_of(operator: str) -> str:
    """Return the kind of an operator such as ``aten::addmm``."""
    name = operator.split('::')[-1]
    for kind, pattern in OPERATORS.items():
        if re.fullmatch(pattern, name):
            return kind
    return 'rest'


# ---- against size and batch


def measure_scaling(options: Options, command: str, memory_of: MemoryOf) -> dict[str, Any]:
    """Measure time and memory against image size, at the first batch, and against batch, at the first size.

    Args:
        options: What to measure. One size or batch is completed to several, in place.
        command: The command line, for the file.
        memory_of: Measures the peak memory of a row.

    Returns:
        As in the JSON file: a point for each row, batch and size, and the exponent of a power law through them.
    """
    _complete(options)
    rows = choose_rows(options)
    result = header(options, command)
    result['points'] = []
    for batch, size in _points(options):
        task = Task(options, batch, size)
        subjects, result['missing'] = build(rows, task)
        if not result['points']:
            print_header(result, task.changes)
        reference = Reference(task)
        for subject in subjects:
            reference.check(subject)
        figures = summarize(time_in_turn(subjects, options.rounds, options.warmup), {}, batch)
        built_rows = [subject.row for subject in subjects]
        del subject, subjects, reference  # other processes want the memory
        gc.collect()
        for row in built_rows:
            memory = memory_of(row, batch, size) if options.memory else {}
            point = dict(row=row.key, batch=batch, height=size[0], width=size[1], **figures[row.key], **memory)
            result['points'].append(point)
    result['exponents'] = {}
    for name in dict.fromkeys(point['row'] for point in result['points']):
        exponents = {}
        for axis in ('pixels', 'batch'):
            for what in ('min', 'step_mib'):
                exponents[f'{what} against {axis}'] = exponent(series(result['points'], name, axis, what))
        result['exponents'][name] = exponents
    return result


def _complete(options: Options) -> None:
    """Turn one size into several, with sides divisible by 32, and one batch into several."""
    if len(options.size) == 1:
        ((height, width),) = options.size
        sizes = []
        for factor in SIZE_FACTORS:
            sizes.append((max(32, round(height * factor / 32) * 32), max(32, round(width * factor / 32) * 32)))
        options.size = list(dict.fromkeys(sizes))
    if len(options.batch) == 1:
        (batch,) = options.batch
        options.batch = [batch * factor for factor in BATCH_FACTORS]


def _points(options: Options) -> list[tuple[int, tuple[int, int]]]:
    """Return each (batch, size) once: every size at the first batch, every batch at the first size."""
    points = [(options.batch[0], size) for size in options.size]
    points += [(batch, options.size[0]) for batch in options.batch]
    return list(dict.fromkeys(points))


def exponent(points: Sequence[tuple[float, float]]) -> float | None:
    """Return k of y = a * x**k, fitted to the logarithms; None for fewer than two x. Points need y > 0."""
    points = [(x, y) for x, y in points if y > 0]
    if len({x for x, _ in points}) < 2:
        return None
    x, y = np.log(np.array(points)).T
    slope, _ = np.polyfit(x, y, 1)
    return round(float(slope), 3)


# ---- the optimizer


def measure_optimizer(options: Options, command: str) -> dict[str, Any]:
    """Time an AdamW step of the layer-wise recipe, as in the JSON file of the subcommand ``optimizer``.

    Rows are one group per tensor and merged groups, each as torch chooses its kernel and fused.

    Args:
        options: What to measure.
        command: The command line, for the file.
    """
    result = dict(header(options, command), missing={}, rows=[])
    print_header(result, [])
    optimizers = {}
    for merged, groups_name in ((False, 'a group a tensor'), (True, 'merged groups')):
        for fused, kernel_name in ((None, 'default'), (True, 'fused')):
            groups = _layer_decay_groups(options, merged)
            optimizers[f'{groups_name}, {kernel_name}'] = torch.optim.AdamW(groups, fused=fused)
    for optimizer in optimizers.values():
        for _ in range(options.warmup):
            _optimizer_seconds(optimizer)
    seconds: dict[str, list[float]] = {name: [] for name in optimizers}
    for _ in range(options.rounds):
        for name, optimizer in optimizers.items():
            seconds[name].append(_optimizer_seconds(optimizer))
    for name, figures in summarize(seconds, {'fp32': 'merged groups, fused'}, images=1).items():
        figures.pop('images_per_second')
        num_groups = len(optimizers[name].param_groups)
        result['rows'].append(dict(name=name, dtype='fp32', peer='torch', groups=num_groups, **figures))
    return result


def _layer_decay_groups(options: Options, merged: bool) -> list[dict[str, Any]]:
    """Return the parameter groups of a new backbone with gradients."""
    model = ConvNeXt(options.arch).to(options.device)
    for param in model.parameters():
        param.grad = torch.full_like(param, 1e-3)
    wrapper = ConvNeXtLayerDecayConstructor(
        dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-6, weight_decay=0.05)),
        dict(decay_rate=0.8, decay_type='layer_wise'),
    )(model)
    groups = []
    for group in wrapper.optimizer.param_groups:
        settings = dict(lr=group['lr'], weight_decay=group['weight_decay'])
        if merged:
            groups.append(dict(params=group['params'], **settings))
        else:
            groups += [dict(params=[param], **settings) for param in group['params']]
    return groups


def _optimizer_seconds(optimizer: torch.optim.Optimizer) -> float:
    begin = perf_counter()
    optimizer.step()
    synchronize()
    return perf_counter() - begin
