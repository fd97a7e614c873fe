"""Walk the main path with the installed versions and note the result: make TORCH=2.9.1 test-versions

The steps: import both toolkits, write the sample data, then train, resume, test and export each digits config. The
results go to docs/reference/versions.json, one entry per set of versions, and versions.md beside it is made of them.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TABLE, PAGE = ROOT / 'docs/reference/versions.json', ROOT / 'docs/reference/versions.md'
PACKAGES = ('torch', 'torchvision', 'numpy', 'mmengine', 'mmcv', 'mmdet', 'mmsegmentation')
# By package of the table: its distributions, of which one is installed.
DISTRIBUTIONS = {
    'mmengine': ('mmengine', 'onedl-mmengine'),
    'mmcv': ('mmcv', 'mmcv-lite', 'onedl-mmcv'),
    'mmdet': ('mmdet', 'onedl-mmdetection'),
    'mmsegmentation': ('mmsegmentation', 'onedl-mmsegmentation'),
}
TIME_LIMIT = 900  # seconds per step
# Options of a training of few iterations that keeps a checkpoint, and of the longer one that continues it.
SHORT = {
    'mask_rcnn': (
        ('train_cfg.max_epochs=1', 'train_dataloader.dataset.indices=32'),
        ('train_cfg.max_epochs=2', 'train_dataloader.dataset.indices=32'),
    ),
    'upernet': (
        ('train_cfg.max_iters=2', 'train_cfg.val_interval=2', 'default_hooks.checkpoint.interval=2'),
        ('train_cfg.max_iters=4', 'train_cfg.val_interval=2', 'default_hooks.checkpoint.interval=2'),
    ),
}
CHECKPOINTS = dict(mask_rcnn=('epoch_1.pth', 'epoch_2.pth'), upernet=('iter_2.pth', 'iter_4.pth'))


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0].split(':')[0]).parse_args()
    entry = dict(python=platform.python_version(), **installed_versions(), steps=walk())
    entries = json.loads(TABLE.read_text()) if TABLE.exists() else []
    key = {name: entry[name] for name in ('python', *PACKAGES)}
    entries = [other for other in entries if {name: other[name] for name in key} != key]
    entries = sorted([*entries, entry], key=lambda other: (version_key(other['torch']), version_key(other['python'])))
    TABLE.write_text(json.dumps(entries, indent=1) + '\n')
    PAGE.write_text(page(entries))
    failed = [step for step, outcome in entry['steps'].items() if outcome != 'passed']
    print(f'\n{json.dumps(entry, indent=1)}\nwritten to {TABLE} and {PAGE}')
    if failed:
        sys.exit(f'error: failed with these versions: {", ".join(failed)}')


def installed_versions() -> dict[str, str]:
    """Return the version of each package, with the name of its distribution where that differs."""
    versions = {}
    for package in PACKAGES:
        versions[package] = 'not installed'
        for distribution in DISTRIBUTIONS.get(package, (package,)):
            try:
                version = importlib.metadata.version(distribution)
            except importlib.metadata.PackageNotFoundError:
                continue
            versions[package] = version if distribution == package else f'{version} ({distribution})'
            break
    return versions


def walk() -> dict[str, str]:
    """Run every step and return 'passed' or the last line of its output."""
    steps = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = folder / 'data'
        steps['import'] = run('-c', 'import convnext_dense, mmcv.ops, mmdet.apis, mmseg.apis', data=data)
        steps['data'] = run('-m', 'convnext_dense.sample_data', data / 'digits', '--train', 32, '--val', 8, data=data)
        for task, (first, longer) in SHORT.items():
            config = ROOT / 'configs' / task / 'convnext_digits.py'
            work_dir = folder / task
            train = (ROOT / 'tools/train.py', config, '--work-dir', work_dir)
            steps[f'{task} train'] = run(*train, '--cfg-options', *first, data=data)
            steps[f'{task} resume'] = run(*train, '--resume', '--cfg-options', *longer, data=data)
            missing = [file for file in CHECKPOINTS[task] if not (work_dir / file).exists()]
            if missing:
                steps[f'{task} resume'] += f'; not written: {", ".join(missing)}'
            checkpoint = work_dir / CHECKPOINTS[task][-1]
            steps[f'{task} test'] = run(
                ROOT / 'tools/test.py', config, checkpoint, '--work-dir', folder / 'test' / task, data=data
            )
            steps[f'{task} export'] = run(
                ROOT / 'tools/export.py', config, checkpoint, folder / f'{task}.onnx', '--part', 'backbone', data=data
            )
    return steps


def run(*args: object, data: Path) -> str:
    """Run Python with ``args``; return 'passed' or the last line that it wrote."""
    command = [sys.executable, *map(str, args)]
    print('$ ' + ' '.join(command), flush=True)
    environment = dict(os.environ, CONVNEXT_DENSE_DATA=str(data))
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIME_LIMIT)
    except subprocess.TimeoutExpired:
        return f'still running after {TIME_LIMIT} s'
    if done.returncode == 0:
        return 'passed'
    lines = (done.stdout + done.stderr).strip().splitlines()
    print(*lines[-20:], sep='\n', flush=True)
    return lines[-1] if lines else f'status {done.returncode}'


def version_key(version: str) -> tuple[int, ...]:
    """Return '2.13.0+cpu' as (2, 13, 0)."""
    return tuple(int(part) for part in version.split('+')[0].split('.') if part.isdigit())


def page(entries: Sequence[dict]) -> str:
    """Return the table of all entries as Markdown."""
    columns = ('python', *PACKAGES)
    lines = [
        '# Versions that were run',
        '',
        'Written by `make TORCH=VERSION test-versions`: import of both toolkits, then training, resuming, testing and',
        'export of the backbone for both digits configs, on a CPU.',
        '',
        'Under torch 2.6 the fused block cannot find out what it has to respect, and the plain block runs. torch 2.1',
        'trains, but cannot read a checkpoint of a training safely, so that nothing can be resumed: it is not',
        'supported.',
        '',
        f'| {" | ".join(columns)} | result |',
        '| ' + ' | '.join('---' for _ in (*columns, 'result')) + ' |',
    ]
    for entry in entries:
        failed = [f'{step}: {outcome}' for step, outcome in entry['steps'].items() if outcome != 'passed']
        result = '; '.join(failed) or f'all {len(entry["steps"])} steps passed'
        lines.append(f'| {" | ".join(entry[name] for name in columns)} | {result} |')
    return '\n'.join(lines) + '\n'


if __name__ == '__main__':
    main()
