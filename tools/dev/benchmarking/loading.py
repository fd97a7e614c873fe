"""Time and peak memory of loading weights: the subcommand ``loading``.

Each figure is the median over fresh processes, against bare ``torch.load`` and ``load_state_dict`` of the same file.
The file has the official layout with random weights; it is in the page cache, as after any first use.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from benchmarking.machine import MIB
from convnext_dense import ConvNeXt, __version__

WAYS = ('bare', 'pretrained', 'load_state_dict')
SCRIPT = Path(__file__).resolve().parents[1] / 'benchmark.py'


def run(arch: str, repeats: int, out: Path | None, measured: tuple[str, str] | None) -> None:
    """Measure every way of loading and print the figures.

    Args:
        arch: Of ConvNeXt.
        repeats: Processes for each way.
        out: JSON file to write.
        measured: Only measure this (way, file) in this process: the work of a separate process.
    """
    if measured:
        way, path = measured
        print(json.dumps(measure(way, arch, Path(path))), file=sys.stderr)
        return
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'weights.pth'
        write_file(arch, path)
        file_mib = path.stat().st_size / MIB
        for _ in range(repeats):
            for way in WAYS:
                runs[way].append(_in_process(way, arch, path))
    text = json.dumps(_summary(arch, file_mib, runs), indent=2)
    print(text)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text + '\n')


def write_file(arch: str, path: Path) -> None:
    """Write weights as in an official ImageNet file: ``{'model': ...}`` with final norm and classifier."""
    model = ConvNeXt(arch)
    width = model.channels[-1]
    state = {name: value for name, value in model.state_dict().items() if not name.startswith('norm')}
    state['norm.weight'] = torch.ones(width)
    state['norm.bias'] = torch.zeros(width)
    state['head.weight'] = torch.randn(1000, width)
    state['head.bias'] = torch.zeros(1000)
    torch.save({'model': state}, path)


def _in_process(way: str, arch: str, path: Path) -> dict[str, float]:
    """Return the figures of :func:`measure` in a fresh process."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), 'loading', '--arch', arch, '--measure', way, str(path)],
        check=True,
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    return json.loads(done.stderr.splitlines()[-1])


def measure(way: str, arch: str, path: Path) -> dict[str, float]:
    """Load weights in this process.

    Args:
        way: One of :data:`WAYS`.
        arch: Of ConvNeXt.
        path: File of :func:`write_file`.

    Returns:
        Seconds, and MiB of peak memory of this process in all and above the model that is filled.
    """
    model = ConvNeXt(arch, pretrained=str(path) if way == 'pretrained' else None)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.perf_counter()
    if way == 'bare':
        # As torch does it: without the load hook.
        ConvNeXt._load_from_state_dict = nn.Module._load_from_state_dict  # type: ignore[method-assign]
        model.load_state_dict(torch.load(path, map_location='cpu')['model'], strict=False)
    elif way == 'pretrained':
        model.init_weights()
    else:
        model.load_state_dict(torch.load(path, map_location='cpu'))
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return dict(seconds=seconds, peak_mib=peak / 1024, above_model_mib=(peak - before) / 1024)


def _summary(arch: str, file_mib: float, runs: dict[str, list[dict[str, float]]]) -> dict:
    """Return the medians of all runs, and their ratios to bare loading, None where the bare figure is 0."""
    median: dict[str, dict[str, float]] = {}
    for way, figures in runs.items():
        median[way] = {name: round(statistics.median(run[name] for run in figures), 3) for name in figures[0]}
    ratio: dict[str, dict[str, float | None]] = {}
    for way in WAYS[1:]:
        ratio[way] = {}
        for name, value in median[way].items():
            bare = median['bare'][name]
            ratio[way][name] = round(value / bare, 3) if bare else None
    return dict(
        arch=arch,
        file_mib=round(file_mib, 1),
        median=median,
        ratio=ratio,
        machine=dict(
            cpu=platform.processor() or platform.machine(),
            cpus=os.cpu_count(),
            threads=torch.get_num_threads(),
            python=platform.python_version(),
            torch=torch.__version__,
            convnext_dense=__version__,
        ),
        runs=runs,
    )
