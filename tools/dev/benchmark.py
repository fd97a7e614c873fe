"""ConvNeXt against its peers: python tools/dev/benchmark.py [--mode train] [--arch base] [--dtype fp32 bf16]

Every row has the same weights and the same images, and gives the four normalised stages as contiguous NCHW tensors.
Outputs (and in training a gradient) are compared first. Then the rows run in turn, round after round, so that what
disturbs the machine disturbs all of them; minima, medians and their ratios to ours are printed. A training step is
forward and backward; --mode optimizer measures the optimizer; --profile tells where the time goes. Peak memory is
that of a process of its own for each row.

mmpretrain: `pip install --no-deps mmpretrain==1.2.0 model-index mat4py einops 'importlib-metadata<9' ordered-set
markdown zipp`, into an environment for benchmarks only: beside transformers >= 5 it breaks the import of mmdet.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from benchmark_rows import (
    DTYPES,
    MIB,
    Reference,
    Row,
    Subject,
    Task,
    all_rows,
    count_gflop,
    operators,
    peak_memory,
    saved_activations,
    tolerances,
)
from mmengine.logging import MMLogger

from convnext_dense import ARCHS, ConvNeXt, ConvNeXtLayerDecayConstructor, UserError
from convnext_dense.run.options import common_arguments, errors_as_sentences

PACKAGES = (
    'torch',
    'torchvision',
    'timm',
    'transformers',
    'mmpretrain',
    'onnxruntime',
    'openvino',
    'mmengine',
    'mmcv',
    'mmdet',
    'mmsegmentation',
    'convnext-dense',
)


def in_child(args: argparse.Namespace, row: Row, batch: int, size: tuple[int, int]) -> dict[str, Any]:
    """:func:`peak_memory` of a row in a process of its own."""
    command = [
        sys.executable,
        __file__,
        *args.argv,
        '--memory-of',
        row.key,
        '--batch',
        str(batch),
        '--size',
        f'{size[0]}x{size[1]}',
    ]
    done = subprocess.run(command, text=True, capture_output=True)
    if done.returncode:
        raise UserError(
            f'the process that measures the memory of {row.key} failed: '
            f'{(done.stderr or done.stdout).strip().splitlines()[-1]}; --no-memory leaves it out'
        )
    return json.loads(done.stdout.splitlines()[-1])


# ---- the machine


def machine(device: torch.device) -> dict[str, Any]:
    """Processor, GPU, threads and versions."""
    versions = {'python': platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    cpuinfo = Path('/proc/cpuinfo').read_text() if Path('/proc/cpuinfo').exists() else ''
    name = re.search(r'model name\s*: (.*)', cpuinfo)
    flags = set(re.search(r'flags\s*: (.*)', cpuinfo)[1].split()) if 'flags' in cpuinfo else set()
    return dict(
        cpu=name[1] if name else platform.processor() or platform.machine(),
        cpus=os.cpu_count(),
        instructions=[flag for flag in ('avx2', 'avx512f', 'avx512_bf16', 'amx_bf16') if flag in flags],
        gpu=torch.cuda.get_device_name() if device.type == 'cuda' else None,
        threads=torch.get_num_threads(),
        load_before=round(os.getloadavg()[0], 2),
        versions=versions,
    )


def rates(device: torch.device, tokens: int = 4200, channels: int = 384) -> dict[str, float]:
    """What this machine can do: GFLOP/s (multiply and add counted separately) of the first Linear of a block in stage
    3 of ConvNeXt-T, stock and by oneDNN, and of its weight gradient; GB/s of a copy, read and write counted."""
    found = {}
    flops = 2 * tokens * channels * 4 * channels
    for name in ('fp32', 'bf16') if device.type == 'cpu' else ('fp32', 'bf16', 'fp16'):
        dtype = DTYPES[name]
        x, g = torch.randn(tokens, channels), torch.randn(tokens, 4 * channels)
        weight, bias = torch.randn(4 * channels, channels), torch.randn(4 * channels)
        x, g, weight, bias = (value.to(device, dtype) for value in (x, g, weight, bias))
        found[f'linear {name}'] = flops / 1e9 / best(lambda: F.linear(x, weight, bias), device)  # noqa: B023
        if device.type == 'cpu' and hasattr(torch.ops.mkldnn, '_linear_pointwise'):
            try:
                packed = torch.ops.mkldnn._reorder_linear_weight(weight, tokens)
                found[f'oneDNN linear {name}'] = (
                    flops
                    / 1e9
                    / best(lambda: torch.ops.mkldnn._linear_pointwise(x, packed, bias, 'none', [], ''), device)  # noqa: B023
                )
            except RuntimeError:
                pass  # no such kernel for this processor
        found[f'weight gradient {name}'] = flops / 1e9 / best(lambda: g.t() @ x, device)  # noqa: B023
    source = torch.empty(64 * MIB if device.type == 'cpu' else 1024 * MIB, dtype=torch.uint8, device=device)
    target = torch.empty_like(source).copy_(source)
    found['copy GB/s'] = 2 * source.numel() / 1e9 / best(lambda: target.copy_(source), device)
    return {name: round(value, 1) for name, value in found.items()}


@torch.no_grad()
def best(function: Callable[[], Any], device: torch.device, repeats: int = 10) -> float:
    """Seconds of the fastest of some calls."""
    times = []
    for _ in range(repeats + 2):
        if device.type == 'cuda':
            torch.cuda.synchronize()
        start = time.perf_counter()
        function()
        if device.type == 'cuda':
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[2:])


# ---- measuring


def build(rows: list[Row], task: Task) -> tuple[list[Subject], dict[str, str]]:
    """The rows that this machine has, and {peer that is missing: why}."""
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


def time_in_turn(subjects: list[Subject], rounds: int, warmup: int) -> dict[str, list[float]]:
    """{row: seconds of each round}; A B C A B C ..."""
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


def figures(seconds: dict[str, list[float]], reference_keys: Mapping[str, str], images: int) -> dict[str, dict]:
    """Minimum, median, mean, spread (between the quartiles, over the median) and ratios to our rows: above 1, ours is
    faster."""
    found = {}
    for key, times in seconds.items():
        quartiles = statistics.quantiles(times, n=4) if len(times) > 3 else (min(times), 0, max(times))
        median = statistics.median(times)
        found[key] = dict(
            seconds=times,
            min=min(times),
            median=median,
            mean=statistics.fmean(times),
            max=max(times),
            spread=(quartiles[2] - quartiles[0]) / median,
            images_per_second=images / min(times),
        )
        for dtype, reference in reference_keys.items():
            if reference in seconds:
                found[key][f'ratio_min_{dtype}'] = min(times) / min(seconds[reference])
                found[key][f'ratio_median_{dtype}'] = median / statistics.median(seconds[reference])
    return found


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Everything but ``--scaling``, as in the JSON file."""
    (batch,), (size,) = args.batch, args.size
    rows = all_rows(args)
    task = Task(args, batch, size)
    result = header(args)
    subjects, result['missing'] = build(rows, task)
    print_header(result, task.changes)
    reference = Reference(task)
    differences = {subject.row.key: reference.check(subject) for subject in subjects}
    for key, difference in differences.items():
        print(f'  {key:<32}' + ', '.join(f'{what} {value:.1e}' for what, value in difference.items()))
    if task.model is not None and not task.train:
        own = next((subject for subject in subjects if subject.row.peer == 'ours'), subjects[0])
        with torch.no_grad():
            task.sharpen(own.backbone)
            predictions = own.step()
        if 'pred_instances' in predictions[0]:
            result['detections_per_image'] = statistics.fmean(len(sample.pred_instances) for sample in predictions)
            print(f'detections an image: {result["detections_per_image"]:.0f} (random weights, classifiers scaled up)')
    result['gflop'] = count_gflop(task)
    if args.profile:
        linear = count_gflop(task, (torch.nn.Linear,))
        result['rows'] = []
        for subject in subjects:
            subject.step()
            kinds = operators(subject)
            result['rows'].append(
                dict(
                    name=subject.row.name,
                    dtype=subject.row.dtype,
                    peer=subject.row.peer,
                    operators=kinds,
                    total=sum(kinds.values()),
                    linear_gflop_per_s=linear / kinds['matrix products'] * 1000,
                )
            )
        return result
    seconds = time_in_turn(subjects, args.rounds, args.warmup)
    found = figures(seconds, {dtype: f'ours {dtype}' for dtype in args.dtype}, batch)
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
            **found[row.key],
        )
        if task.train and not row.compiled:
            entry.update(saved_activations(subject))
        result['rows'].append(entry)
    if args.memory:
        subjects.clear()
        gc.collect()
        for entry, row in zip(result['rows'], [row for row in rows if row.key in found]):
            entry.update(in_child(args, row, batch, size))
    return result


def header(args: argparse.Namespace) -> dict[str, Any]:
    device = torch.device(args.device)
    options = {
        key: value
        for key, value in vars(args).items()
        if key not in ('argv', 'json', 'markdown', 'plot', 'memory_of', 'work_dir', 'launcher', 'local_rank')
    }
    return dict(
        command='python tools/dev/benchmark.py ' + shlex.join(args.argv),
        options=options,
        machine=machine(device),
        rates=rates(device),
    )


def scaling(args: argparse.Namespace) -> dict[str, Any]:
    """Time and memory against image size (at the first batch) and against batch (at the first size), each with the
    exponent of a power law through them."""
    rows = all_rows(args)
    if len(args.size) == 1:
        (given,) = args.size
        args.size = list(
            dict.fromkeys(
                tuple(max(32, round(side * factor / 32) * 32) for side in given) for factor in (1, 0.5, 0.75, 1.5)
            )
        )
    if len(args.batch) == 1:
        args.batch = [args.batch[0], 2 * args.batch[0], 4 * args.batch[0]]
    points = list(
        dict.fromkeys([(args.batch[0], size) for size in args.size] + [(batch, args.size[0]) for batch in args.batch])
    )
    result = header(args)
    result['points'] = []
    for batch, size in points:
        task = Task(args, batch, size)
        subjects, result['missing'] = build(rows, task)
        if not result['points']:
            print_header(result, task.changes)
        reference = Reference(task)
        for subject in subjects:
            reference.check(subject)
        found = figures(time_in_turn(subjects, args.rounds, args.warmup), {}, batch)
        built = [subject.row for subject in subjects]
        del subjects, reference
        gc.collect()
        for row in built:
            memory = in_child(args, row, batch, size) if args.memory else {}
            result['points'].append(
                dict(row=row.key, batch=batch, height=size[0], width=size[1], **found[row.key], **memory)
            )
    names = list(dict.fromkeys(point['row'] for point in result['points']))
    result['exponents'] = {
        name: {
            f'{what} against {axis}': exponent(series(result['points'], name, axis, what, args))
            for axis in ('pixels', 'batch')
            for what in ('min', 'step_mib')
        }
        for name in names
    }
    return result


def series(points: list[dict], row: str, axis: str, what: str, args: argparse.Namespace) -> list[tuple[float, float]]:
    """(pixels or batch, figure) of a row, the other axis at its first value."""
    return sorted(
        (point['height'] * point['width'] if axis == 'pixels' else point['batch'], point[what])
        for point in points
        if point['row'] == row
        and point.get(what)
        and (
            (point['height'], point['width']) == tuple(args.size[0])
            if axis == 'batch'
            else point['batch'] == args.batch[0]
        )
    )


def exponent(points: list[tuple[float, float]]) -> float | None:
    """k of y = a * x**k, fitted to the logarithms; None for fewer than two x, or where y is not above 0."""
    points = [(x, y) for x, y in points if y > 0]
    if len({x for x, _ in points}) < 2:
        return None
    x, y = np.log(np.array(points)).T
    return round(float(np.polyfit(x, y, 1)[0]), 3)


def plot(result: dict[str, Any], args: argparse.Namespace) -> None:
    """Time and memory of a step against pixels and batch, a line a row."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(10, 8), constrained_layout=True)
    for column, (axis, label) in zip(
        axes.T,
        (('pixels', f'pixels of an image, batch {args.batch[0]}'), ('batch', 'batch, {}x{}'.format(*args.size[0]))),
    ):
        for panel, (what, unit) in zip(column, (('min', 'seconds (minimum)'), ('step_mib', 'memory of a step, MiB'))):
            for row, exponents in result['exponents'].items():
                points = series(result['points'], row, axis, what, args)
                if points:
                    panel.plot(*zip(*points), marker='o', label=f'{row}: {exponents[f"{what} against {axis}"]}')
                    panel.legend(title='exponent', fontsize='small')
            panel.set(xscale='log', yscale='log', xlabel=label, ylabel=unit)
            panel.grid(alpha=0.3, which='both')
    figure.suptitle(f'{args.arch}, {args.mode}, {result["machine"]["gpu"] or result["machine"]["cpu"]}')
    figure.savefig(args.plot)
    pyplot.close(figure)


def measure_optimizer(args: argparse.Namespace) -> dict[str, Any]:
    """One AdamW step of the layer-wise recipe: a group a tensor or merged groups, each as torch chooses and fused."""
    device = torch.device(args.device)
    result = dict(header(args), missing={}, rows=[])
    print_header(result, [])
    steps: dict[str, Callable[[], None]] = {}
    groups = {}
    for merged in (False, True):
        for fused in (False, True):
            model = ConvNeXt(args.arch).to(device)
            for param in model.parameters():
                param.grad = torch.full_like(param, 1e-3)
            wrapper = ConvNeXtLayerDecayConstructor(
                dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-6, weight_decay=0.05)),
                dict(decay_rate=0.8, decay_type='layer_wise'),
            )(model)
            wanted = [dict(group) for group in wrapper.optimizer.param_groups]
            if not merged:
                wanted = [dict(group, params=[param]) for group in wanted for param in group['params']]
            wanted = [{key: group[key] for key in ('params', 'lr', 'weight_decay')} for group in wanted]
            name = f'{"merged groups" if merged else "a group a tensor"}, {"fused" if fused else "default"}'
            groups[name] = len(wanted)
            optimizer = torch.optim.AdamW(wanted, fused=True if fused else None)

            def step(optimizer: torch.optim.Optimizer = optimizer) -> None:
                optimizer.step()
                if device.type == 'cuda':
                    torch.cuda.synchronize()

            steps[name] = step
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        for _ in range(args.warmup):
            step()
    for _ in range(args.rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    for name, found in figures(seconds, {'fp32': 'merged groups, fused'}, 1).items():
        found.pop('images_per_second')
        result['rows'].append(dict(name=name, dtype='fp32', peer='torch', groups=groups[name], **found))
    return result


# ---- printing


def print_header(result: dict[str, Any], changes: list[str]) -> None:
    for line in (*header_lines(result), *changes, 'difference from the official formulation in fp32:'):
        print(line, flush=True)


def header_lines(result: dict[str, Any]) -> list[str]:
    found = result['machine']
    options = result['options']
    allowed = ', '.join(
        f'{dtype} {outputs:.0e} / {gradient:.0e}'
        for dtype, (outputs, gradient) in (
            (dtype, tolerances(dtype, torch.device(options['device']))) for dtype in options['dtype']
        )
    )
    return [
        f'machine: {found["gpu"] or found["cpu"]}, {found["cpus"]} CPUs ({", ".join(found["instructions"])}), '
        f'{found["threads"]} threads, load before {found["load_before"]}',
        'versions: ' + ', '.join(f'{name} {version}' for name, version in found['versions'].items()),
        'rates, GFLOP/s: ' + ', '.join(f'{name} {value:.0f}' for name, value in result['rates'].items()),
        'missing: ' + ('; '.join(f'{name} ({why})' for name, why in result.get('missing', {}).items()) or 'nothing'),
        f'allowed differences, outputs / gradient: {allowed}',
    ]


COLUMNS = {
    'min ms': ('min', lambda value: f'{value * 1000:.1f}'),
    'median ms': ('median', lambda value: f'{value * 1000:.1f}'),
    'spread': ('spread', lambda value: f'{value:.0%}'),
    'images/s': ('images_per_second', lambda value: f'{value:.2f}'),
    'groups': ('groups', str),
    'peak MiB': ('peak_mib', lambda value: f'{value:.0f}'),
    'step MiB': ('step_mib', lambda value: f'{value:.0f}'),
    'saved MiB': ('saved_mib', lambda value: f'{value:.0f}'),
    'B / token / channel': ('bytes_per_token_channel', lambda value: f'{value:.1f}'),
}


def operator_table(rows: list[dict[str, Any]]) -> str:
    """Markdown: where the time of a step goes."""
    kinds = list(rows[0]['operators'])
    lines = [['ms', 'dtype', 'all', *kinds, 'Linears, GFLOP/s'], ['---'] * (len(kinds) + 4)]
    lines += [
        [
            row['name'],
            row['dtype'],
            f'{row["total"]:.1f}',
            *(f'{row["operators"][kind]:.1f}' for kind in kinds),
            f'{row["linear_gflop_per_s"]:.0f}',
        ]
        for row in rows
    ]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def table(rows: list[dict[str, Any]], dtypes: list[str]) -> str:
    """Markdown. The columns of ratios are time over that of ours, minima and (medians)."""
    columns = {
        title: (key, text) for title, (key, text) in COLUMNS.items() if any(row.get(key) is not None for row in rows)
    }
    ratios = [dtype for dtype in dtypes if any(f'ratio_min_{dtype}' in row for row in rows)]
    base = 'merged, fused' if any('groups' in row for row in rows) else 'ours'
    lines = [['', 'dtype', *columns, *(f'over {base} {dtype}' for dtype in ratios)]]
    lines.append(['---'] * len(lines[0]))
    for row in rows:
        cells = ['' if row.get(key) is None else text(row[key]) for key, text in columns.values()]
        cells += [f'{row[f"ratio_min_{dtype}"]:.2f} ({row[f"ratio_median_{dtype}"]:.2f})' for dtype in ratios]
        lines.append([row['name'], row['dtype'], *cells])
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def report(result: dict[str, Any]) -> str:
    """Markdown: what was run, where, and the table."""
    options = result['options']
    sizes = ' '.join(f'{height}x{width}' for height, width in options['size'])
    what = Path(options['config']).stem if options['config'] else f'ConvNeXt {options["arch"]}'
    how = 'operators' if options['profile'] else f'{options["rounds"]} rounds in turn'
    lines = [
        f'{what}, {options["mode"]}, batch {" ".join(map(str, options["batch"]))}, {sizes}, ' + how,
        '',
        f'`{result["command"]}`',
        '',
        *(f'- {line}' for line in header_lines(result)),
    ]
    if 'gflop' in result:
        rate = max((value, name) for name, value in result['rates'].items() if name.startswith(('linear', 'oneDNN')))
        fp32 = max((value, name) for name, value in result['rates'].items() if name.endswith('linear fp32'))
        lines.append(
            f'- products and convolutions of the backbone: {result["gflop"]:.4g} GFLOP a step, at the rates '
            f'above at least {result["gflop"] / fp32[0] * 1000:.1f} ms in fp32 and '
            f'{result["gflop"] / rate[0] * 1000:.1f} ms by {rate[1]}'
        )
    if options['config'] and options['device'] == 'cpu' and options['dtype'] != ['fp32']:
        lines.append("- half types in the backbone only: mmcv's CPU operators know none")
    if 'detections_per_image' in result:
        lines.append(f'- {result["detections_per_image"]:.0f} detections an image, of random weights')
    if options['drop_path'] and options['mode'] == 'train':
        lines.append('- with drop path, steps differ by what they draw: the medians count, not the minima')
    if options['profile']:
        lines += [
            '- the fastest of five steps under the profiler; the rate is that of the products which the model '
            'needs, computed again or not',
            '',
            operator_table(result['rows']),
        ]
    elif 'rows' in result:
        lines += ['', table(result['rows'], options['dtype'])]
    if 'points' in result:
        titles = list(next(iter(result['exponents'].values())))
        lines += ['', f'| exponent | {" | ".join(titles)} |', '|' + '---|' * (len(titles) + 1)]
        lines += [
            f'| {name} | '
            + ' | '.join('' if found[title] is None else f'{found[title]:.2f}' for title in titles)
            + ' |'
            for name, found in result['exponents'].items()
        ]
        lines += ['', '| | batch | size | min ms | median ms | step MiB |', '|---|---|---|---|---|---|']
        lines += [
            f'| {point["row"]} | {point["batch"]} | {point["height"]}x{point["width"]} | '
            f'{point["min"] * 1000:.1f} | {point["median"] * 1000:.1f} | {point.get("step_mib", "")} |'
            for point in result['points']
        ]
    return '\n'.join(lines) + '\n'


# ---- command line


def parse_size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r'(\d+)x(\d+)', text)
    if not match:
        raise argparse.ArgumentTypeError(f'{text} is no size: write HEIGHTxWIDTH, as in 800x1344')
    return int(match[1]), int(match[2])


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split(':')[0], parents=[])
    parser.add_argument('--mode', choices=('inference', 'train', 'optimizer'), default='inference')
    parser.add_argument('--arch', default='tiny', choices=list(ARCHS))
    parser.add_argument('--config', help='measure the whole detector or segmentor of this config, with each backbone')
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='change the config')
    parser.add_argument(
        '--dtype',
        nargs='+',
        choices=list(DTYPES),
        default=['fp32'],
        help='bf16 and fp16: autocast; several are compared in one run',
    )
    parser.add_argument('--cast', action='store_true', help='inference: weights in the half type instead of autocast')
    parser.add_argument('--batch', type=int, nargs='+', help='default 1, in training 2')
    parser.add_argument(
        '--size', type=parse_size, nargs='+', metavar='HxW', help='default 800x1344, in training 512x512'
    )
    parser.add_argument(
        '--layout',
        choices=('auto', 'contiguous', 'channels_last', 'both'),
        default='auto',
        help="the peers' memory; auto: the layouts that suit each (ours chooses by itself)",
    )
    parser.add_argument('--compile', action='store_true', help='torch.compile of ours, official and timm as well')
    parser.add_argument('--drop-path', type=float, default=0.0, help='stochastic depth in training')
    parser.add_argument(
        '--ours',
        nargs='+',
        default=[],
        metavar='NAME:KEY=VALUE,...',
        help='further rows of ours with '
        'other arguments, as in checkpoint:with_cp=True; keys in capitals are environment variables',
    )
    parser.add_argument('--only', nargs='+', metavar='NAME', help='these rows, or all rows of these peers')
    parser.add_argument('--rounds', type=int, default=9)
    parser.add_argument('--warmup', type=int, default=2, help='steps of each row before the first round')
    parser.add_argument('--threads', type=int, help='CPU threads; default: as torch chooses')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument(
        '--no-memory', dest='memory', action='store_false', help='no peak memory, which takes a process a row'
    )
    parser.add_argument(
        '--profile', action='store_true', help='where the time of a step goes, instead of how long it takes'
    )
    parser.add_argument('--scaling', action='store_true', help='time and memory against image size and batch')
    parser.add_argument('--plot', type=Path, metavar='OUT', help='of --scaling: .png or .svg')
    parser.add_argument('--json', type=Path, metavar='OUT')
    parser.add_argument('--markdown', type=Path, metavar='OUT')
    parser.add_argument('--memory-of', help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    args.argv = argv
    args.batch = args.batch or [2 if args.mode == 'train' else 1]
    args.size = args.size or [(512, 512) if args.mode == 'train' else (800, 1344)]
    if args.config:
        # As tools/train.py reads it.
        read = common_arguments('').parse_args(
            [args.config, *(['--cfg-options', *args.cfg_options] if args.cfg_options else [])]
        )
        args = argparse.Namespace(**{**vars(read), **{k: v for k, v in vars(args).items() if k != 'cfg_options'}})
    if args.rounds < 1 or args.warmup < 1 or min(args.batch) < 1:
        raise UserError('--rounds, --warmup and --batch need at least 1')
    if not args.scaling and (len(args.batch) > 1 or len(args.size) > 1):
        raise UserError('several batches or sizes are for --scaling: add it, or give one of each')
    if args.plot and not args.scaling:
        raise UserError('--plot draws what --scaling measures: add --scaling')
    if args.profile and (args.scaling or args.mode == 'optimizer' or args.config):
        raise UserError('--profile is for backbones: leave --scaling, --config and --mode optimizer out')
    if args.cast and args.mode != 'inference':
        raise UserError('--cast is for inference: training in a half type keeps its weights in fp32')
    if args.drop_path and args.config:
        raise UserError('--drop-path: the config has its own rate: --cfg-options model.backbone.drop_path_rate=...')
    return args


def main(argv: list[str] | None = None) -> None:
    with errors_as_sentences():
        args = parse(sys.argv[1:] if argv is None else list(argv))
        warnings.filterwarnings('ignore')
        MMLogger.get_instance('mmengine', log_level='WARNING')
        if args.threads:
            torch.set_num_threads(args.threads)
        if args.memory_of:
            (batch,), (size,) = args.batch, args.size
            row = next(row for row in all_rows(args) if row.key == args.memory_of)
            print(json.dumps(peak_memory(Subject(row, Task(args, batch, size)))))
            return
        run = scaling if args.scaling else measure_optimizer if args.mode == 'optimizer' else measure
        result = run(args)
        text = report(result)
        print('\n' + text)
        if args.plot:
            plot(result, args)
        for path, content in ((args.json, json.dumps(result, indent=1, default=str) + '\n'), (args.markdown, text)):
            if path:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(content)


if __name__ == '__main__':
    main()
