"""Whole detectors and segmentors, from the image to the pasted masks or labels: the toolkit against exported files."""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmcv.ops import RoIAlign
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from benchmarking.machine import MIB, machine, rates
from benchmarking.memory import process_bytes
from benchmarking.peers import PEERS, import_mmpretrain
from benchmarking.report import markdown_table
from benchmarking.rows import KERNELS, environment
from convnext_dense import prepare_for_inference
from convnext_dense.archs import resolve_arch
from convnext_dense.errors import UserError
from convnext_dense.export import whole_model, write_onnx
from convnext_dense.export.describe import metadata_of
from convnext_dense.export.proof import example_images, toolkit_samples
from convnext_dense.mmcv_ops import operators_in_use
from convnext_dense.run.machine import fit_to_machine
from convnext_dense.run.options import height_and_width, read_config
from convnext_dense.runtime import Model
from convnext_dense.toolkits import check_toolkit

SCRIPT = Path(__file__).resolve().parents[1] / 'benchmark.py'
# Exported rows: the runtime, and whether it is asked for bfloat16.
RUNTIMES = {
    'ONNX Runtime': ('onnxruntime', False),
    'OpenVINO': ('openvino', False),
    'OpenVINO bf16': ('openvino', True),
}
PEER = 'toolkit, mmpretrain'
TOOLKIT_ROWS = (PEER, 'toolkit', 'toolkit, plain block')


@dataclass
class Row:
    """One way to run the model; ``step`` takes an image and returns the number of detections or of classes found."""

    name: str
    step: Callable[[], int]


def run(args: argparse.Namespace, argv: Sequence[str]) -> None:
    """Measure, print a table and write the files.

    Args:
        args: Parsed arguments of the subcommand ``whole-model``.
        argv: As given, for the file and for the processes that measure memory.

    Raises:
        UserError: Something given cannot be used.
    """
    if args.threads:
        torch.set_num_threads(args.threads)
    size = height_and_width(args.size)
    image = example_images(1, *size)[0].transpose(1, 2, 0).astype(np.uint8)  # (H, W, 3) RGB
    if args.memory_of:
        print(json.dumps(_peak_memory(args, args.memory_of, image)))
        return
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / 'model.onnx'
        result = _measure(args, argv, image, graph)
    text = _report(result)
    print('\n' + text)
    for path, content in ((args.json, json.dumps(result, indent=1) + '\n'), (args.markdown, text)):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)


def _measure(args: argparse.Namespace, argv: Sequence[str], image: np.ndarray, graph: Path) -> dict[str, Any]:
    cfg, model = _build(args, image)
    begin = time.perf_counter()
    _export(cfg, model, graph)
    result: dict[str, Any] = dict(
        command=f'python tools/dev/benchmark.py {" ".join(argv)}',
        config=args.config,
        size=args.size,
        rounds=args.rounds,
        operators=operators_in_use(),
        torchvision_roi_align=any(isinstance(part, RoIAlign) and part.use_torchvision for part in model.modules()),
        machine=machine(torch.device('cpu')),
        rates=rates(torch.device('cpu')),
        export_seconds=round(time.perf_counter() - begin, 1),
        missing={},
        rows=[],
    )
    rows = []
    for name in args.only or (*TOOLKIT_ROWS, *RUNTIMES):
        try:
            rows.append(_row(name, cfg, model, graph, image))
        except (ImportError, UserError) as error:
            result['missing'][name] = str(error)
    seconds: dict[str, list[float]] = {row.name: [] for row in rows}
    found = {}
    for row in rows:
        for _ in range(args.warmup):
            found[row.name] = row.step()
    for _ in range(args.rounds):  # in turn: what disturbs the machine disturbs all rows
        for row in rows:
            begin = time.perf_counter()
            row.step()
            seconds[row.name].append(time.perf_counter() - begin)
    del rows, model
    for name, times in seconds.items():
        memory = _memory_in_process(argv, name, graph) if args.memory else {}
        result['rows'].append(
            dict(
                name=name,
                found=found[name],
                seconds=times,
                min=min(times),
                median=statistics.median(times),
                **memory,
            )
        )
    return result


def _build(args: argparse.Namespace, image: np.ndarray) -> tuple[Config, nn.Module]:
    """Return the config and its model with random weights that find something."""
    cfg = read_config(args.config, args.cfg_options)
    with suppress(ImportError):  # before mmdet imports it in its own way, which fails
        import_mmpretrain()
    check_toolkit(cfg.get('default_scope') or 'mmengine')
    init_default_scope(cfg.default_scope)
    fit_to_machine(cfg, 'none')
    cfg.model.backbone.init_cfg = None
    cfg.model.backbone.layer_scale_init_value = 1.0
    torch.manual_seed(0)
    model: Any = MODELS.build(cfg.model)
    model.init_weights()
    model.dataset_meta = dict(classes=[str(i) for i in range(1000)], palette=[])
    model.eval()
    _sharpen(model, image)
    return cfg, model


def _sharpen(model: Any, image: np.ndarray) -> None:
    """Scale the classifier of a detector until it is sure of something: one that finds nothing is fast."""
    for name, module in model.named_modules():
        if not name.endswith('fc_cls'):
            continue
        logits: list[torch.Tensor] = []
        handle = module.register_forward_hook(lambda _, __, output, logits=logits: logits.append(output))
        _toolkit_step(model, image)
        handle.remove()
        module.weight.data.mul_(3 / logits[0].std())


def _export(cfg: Config, model: Any, graph: Path) -> None:
    whole = whole_model(model)
    metadata = metadata_of(model, whole, cfg, '', None)
    write_onnx(whole, graph, {**metadata, 'resize': None})


def _row(name: str, cfg: Any, model: Any, graph: Path, image: np.ndarray) -> Row:
    """Build a row.

    Raises:
        ImportError, UserError: What it needs is not installed.
    """
    if name in RUNTIMES:
        runtime, bf16 = RUNTIMES[name]
        exported = Model(graph, runtime, torch.get_num_threads(), bf16)
        return Row(name, lambda: _count(exported.predict(image)))
    if name not in TOOLKIT_ROWS:
        raise UserError(f'there is no row {name!r}, choose from {", ".join((*TOOLKIT_ROWS, *RUNTIMES))}')
    own = copy.copy(model)  # the heads are shared
    own._modules = dict(model._modules)
    variables: dict[str, str | None] = {KERNELS: None}
    if name == PEER:
        _use_mmcv_roi_align(own)
        depths, channels = resolve_arch(cfg.model.backbone.arch)
        build, _ = PEERS['mmpretrain']
        own.backbone = build(depths, channels, 0.0, model.backbone.state_dict(), v2=False)
        own.backbone.train(False)  # its eval() returns None
    elif name == 'toolkit, plain block':
        variables = {KERNELS: 'eager'}
        own.backbone = copy.deepcopy(model.backbone)
    else:
        own.backbone = prepare_for_inference(copy.deepcopy(model.backbone))

    def step() -> int:
        with environment(variables):
            return _toolkit_step(own, image)

    return Row(name, step)


def _use_mmcv_roi_align(model: Any) -> None:
    """Take mmcv's RoIAlign, as the toolkit does on its own; our tools take torchvision's on a CPU."""
    if not hasattr(model, 'roi_head'):
        return
    model.roi_head = copy.deepcopy(model.roi_head)
    for module in model.roi_head.modules():
        if isinstance(module, RoIAlign):
            module.use_torchvision = False


@torch.no_grad()
def _toolkit_step(model: Any, image: np.ndarray) -> int:
    sample = toolkit_samples(model, torch.from_numpy(image).permute(2, 0, 1)[None])[0]
    if 'pred_sem_seg' in sample:
        return len(np.unique(sample.pred_sem_seg.data.numpy()))
    return len(sample.pred_instances)


def _count(result: Any) -> int:
    return len(np.unique(result.labels)) if result.labels.ndim == 2 else len(result)


def _memory_in_process(argv: Sequence[str], name: str, graph: Path) -> dict[str, Any]:
    """Measure the memory of a row in a process that does nothing else."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *argv, '--memory-of', name, '--graph', str(graph)], text=True, capture_output=True
    )
    if done.returncode:
        reason = (done.stderr or done.stdout).strip().splitlines()[-1]
        raise UserError(f'the process that measures the memory of {name} failed: {reason}; --no-memory leaves it out')
    return json.loads(done.stdout.splitlines()[-1])


def _peak_memory(args: argparse.Namespace, name: str, image: np.ndarray) -> dict[str, float]:
    """Return the peak of the process in two steps, and how much of it is not the imported packages."""
    before = process_bytes('VmRSS') or 0
    cfg, model = (None, None) if name in RUNTIMES else _build(args, image)
    with suppress(OSError):
        Path('/proc/self/clear_refs').write_text('5')  # the high-water mark starts anew
    row = _row(name, cfg, model, args.graph, image)
    row.step()
    row.step()
    peak = process_bytes('VmHWM') or 0
    return dict(peak_mib=round(peak / MIB, 1), model_mib=round((peak - before) / MIB, 1))


def _report(result: dict[str, Any]) -> str:
    """Return Markdown: what was run, where, and the table, with ratios to the first row."""
    base = result['rows'][0]
    lines = [['', 'min s', 'median s', f'{base["name"]} / it', 'peak MiB', 'of it model MiB', 'found']]
    for row in result['rows']:
        memory = [f'{row[key]:.0f}' if key in row else '' for key in ('peak_mib', 'model_mib')]
        factor = f'{base["min"] / row["min"]:.2f}'
        lines.append([row['name'], f'{row["min"]:.3f}', f'{row["median"]:.3f}', factor, *memory, str(row['found'])])
    about = result['machine']
    versions = ', '.join(f'{name} {version}' for name, version in about['versions'].items())
    missing = '; '.join(f'{name} ({why})' for name, why in result['missing'].items())
    roi_align = "; RoIAlign is torchvision's, but mmcv's in the row of mmpretrain"
    if not result['torchvision_roi_align']:
        roi_align = ''
    notes = [
        f'machine: {about["cpu"]}, {about["cpus"]} CPUs ({", ".join(about["instructions"])}), {about["threads"]} '
        f'threads, load before {about["load_before"]}',
        f'versions: {versions}',
        'rates, GFLOP/s: ' + ', '.join(f'{name} {value:.0f}' for name, value in result['rates'].items()),
        f"mmcv's operators: {result['operators']}{roi_align}",
        f'missing: {missing or "nothing"}',
        f'export: {result["export_seconds"]} s; found: detections of random weights, or classes of a label map',
    ]
    title = f'# {Path(result["config"]).stem}, whole model, 1x3x{result["size"]}, {result["rounds"]} rounds in turn'
    return (
        '\n\n'.join([title, f'`{result["command"]}`', '\n'.join(f'- {note}' for note in notes), markdown_table(lines)])
        + '\n'
    )
