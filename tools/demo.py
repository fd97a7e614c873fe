"""Train, test and draw Mask R-CNN and UperNet on the built-in digits: python tools/demo.py FOLDER [--quick]"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt  # noqa: E402

from convnext_dense.errors import UserError  # noqa: E402
from convnext_dense.run.metrics import metrics_table
from convnext_dense.run.options import errors_as_sentences
from convnext_dense.sample_data import write_sample_data  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
NUM_SHOWN = 12
# Config, what a quick walk changes in it, and the curves to draw: {metric: label}.
TASKS = {
    'mask_rcnn': (
        ['train_cfg.max_epochs=1', 'train_cfg.val_interval=1', 'train_dataloader.dataset.indices=320'],
        {'coco/bbox_mAP': 'box AP', 'coco/segm_mAP': 'mask AP'},
    ),
    'upernet': (
        ['train_cfg.max_iters=60', 'train_cfg.val_interval=60', 'default_hooks.checkpoint.interval=60'],
        {'mIoU': 'mIoU'},
    ),
}


def call(tool: str, *args: str | Path, data: Path) -> None:
    """Run one of the project's tools as a user would."""
    command = [sys.executable, str(ROOT / 'tools' / tool), *map(str, args)]
    print('\n$ ' + ' '.join(command), flush=True)
    status = subprocess.run(command, env=dict(os.environ, CONVNEXT_DENSE_DATA=str(data))).returncode
    if status:
        raise UserError(f'tools/{tool} ended with status {status}, see above')


def draw_curves(work_dir: Path, metrics: dict[str, str], out: Path) -> None:
    """Training loss and validation metrics over the last run in ``work_dir``."""
    log = max(work_dir.glob('*/vis_data/scalars.json'))  # folders are named by time
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    losses = [row for row in rows if 'loss' in row]
    left.plot([row['iter'] for row in losses], [row['loss'] for row in losses])
    left.set(title='training loss', xlabel='iteration', ylim=(0, None))
    for key, label in metrics.items():
        # Validation rows count in epochs or iterations, as the training loop does.
        points = [(row['step'], row[key]) for row in rows if key in row]
        right.plot(*zip(*points), marker='o', label=label)
    right.set(title='validation', xlabel='epoch' if 'epoch' in losses[0] else 'iteration', ylim=(0, None))
    right.legend()
    figure.tight_layout()
    figure.savefig(out, dpi=100)


def draw_predictions(drawn: Path, out: Path) -> None:
    """The first val images, each as ground truth beside prediction, in one picture."""
    images = sorted(path for path in drawn.rglob('*') if path.suffix in ('.jpg', '.png'))[:NUM_SHOWN]
    figure, axes = plt.subplots(-(-len(images) // 3), 3, figsize=(12, 2.1 * -(-len(images) // 3)), squeeze=False)
    for axis in axes.flat:
        axis.axis('off')
    for axis, path in zip(axes.flat, images):
        axis.imshow(plt.imread(path))
    figure.suptitle('val images: ground truth (left) and prediction (right)')
    figure.tight_layout()
    figure.savefig(out, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split(':')[0])
    parser.add_argument('folder', type=Path, help='data, logs, checkpoints and pictures go here')
    parser.add_argument('--quick', action='store_true', help='the same path in two minutes, without learning much')
    args = parser.parse_args()
    begin = time.time()
    folder = args.folder.absolute()
    with errors_as_sentences():
        data = folder / 'data'
        write_sample_data(data / 'digits')
        tables = {}
        for task, (quick, curves) in TASKS.items():
            config, work_dir = ROOT / 'configs' / task / 'convnext_digits.py', folder / task
            call(
                'train.py',
                config,
                '--work-dir',
                work_dir,
                *(['--cfg-options', *quick] if args.quick else []),
                data=data,
            )
            checkpoint = (work_dir / 'last_checkpoint').read_text()
            drawn = work_dir / 'drawn'
            call('test.py', config, checkpoint, '--work-dir', work_dir / 'test', '--show-dir', drawn, data=data)
            draw_curves(work_dir, curves, folder / f'{task}_curves.png')
            draw_predictions(drawn, folder / f'{task}_predictions.png')
            tables[task] = metrics_table(json.loads((work_dir / 'test' / 'metrics.json').read_text()))
    for task, table in tables.items():
        print(f'\n{task} on val images, digits never seen in training\n{table}')
    print(f'\n{time.time() - begin:.0f} s; curves, predictions beside ground truth, logs and checkpoints: {folder}')


if __name__ == '__main__':
    main()
