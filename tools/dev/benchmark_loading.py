"""Time and peak memory of loading weights: python tools/dev/benchmark_loading.py [--arch xlarge] [--out FILE.json]

Each figure is the median over fresh processes, against bare ``torch.load`` and ``load_state_dict`` of the same file.
The file has the official layout with random weights; it is in the page cache, as after any first use.
"""

import argparse
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

from convnext_dense import ConvNeXt, __version__

WAYS = ('bare', 'pretrained', 'load_state_dict')


def write_file(arch: str, path: Path) -> None:
    """Weights as in an official ImageNet file: ``{'model': ...}`` with final norm and classifier."""
    model = ConvNeXt(arch)
    width = model.channels[-1]
    state = {name: value for name, value in model.state_dict().items() if not name.startswith('norm')}
    state.update(
        {
            'norm.weight': torch.ones(width),
            'norm.bias': torch.zeros(width),
            'head.weight': torch.randn(1000, width),
            'head.bias': torch.zeros(1000),
        }
    )
    torch.save({'model': state}, path)


def measure(way: str, arch: str, path: Path) -> dict[str, float]:
    """Seconds, and MiB of peak memory of this process in all and above the model that is filled."""
    model = ConvNeXt(arch, pretrained=str(path) if way == 'pretrained' else None)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.perf_counter()
    if way == 'bare':
        # As torch does it: without the load hook.
        ConvNeXt._load_from_state_dict = nn.Module._load_from_state_dict
        model.load_state_dict(torch.load(path, map_location='cpu')['model'], strict=False)
    elif way == 'pretrained':
        model.init_weights()
    else:
        model.load_state_dict(torch.load(path, map_location='cpu'))
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return dict(seconds=seconds, peak_mib=peak / 1024, above_model_mib=(peak - before) / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split(':')[0])
    parser.add_argument('--arch', default='xlarge')
    parser.add_argument('--repeats', type=int, default=7)
    parser.add_argument('--out', type=Path, help='JSON file for the figures')
    parser.add_argument('--measure', nargs=2, metavar=('WAY', 'FILE'), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure[0], args.arch, Path(args.measure[1]))), file=sys.stderr)
        return
    runs: dict[str, list[dict]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'weights.pth'
        write_file(args.arch, path)
        size = path.stat().st_size / 2**20
        for _ in range(args.repeats):
            for way in WAYS:
                done = subprocess.run(
                    [sys.executable, __file__, '--arch', args.arch, '--measure', way, str(path)],
                    check=True,
                    text=True,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                )
                runs[way].append(json.loads(done.stderr.splitlines()[-1]))
    median = {
        way: {key: round(statistics.median(run[key] for run in found), 3) for key in found[0]}
        for way, found in runs.items()
    }
    result = dict(
        arch=args.arch,
        file_mib=round(size, 1),
        median=median,
        ratio={way: {key: round(median[way][key] / median['bare'][key], 3) for key in median[way]} for way in WAYS[1:]},
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
    text = json.dumps(result, indent=2)
    print(text)
    if args.out:
        args.out.write_text(text + '\n')


if __name__ == '__main__':
    main()
