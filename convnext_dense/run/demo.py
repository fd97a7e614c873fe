"""Train, test and draw two small models on the built-in digits: what ``tools/demo.py`` does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from convnext_dense.errors import UserError
from convnext_dense.run.metrics import metrics_table
from convnext_dense.run.options import DATA_VARIABLE
from convnext_dense.sample_data import write_sample_data

# The repository's folders, or those of an installed package.
MIM = Path(__file__).resolve().parents[1] / '.mim'
CONFIGS, TOOLS = (MIM / 'configs').resolve(), (MIM / 'tools').resolve()
NUM_PICTURES = 12
NUM_COLUMNS = 3


@dataclass(frozen=True)
class Task:
    """A model of the demo.

    Attributes:
        folder: Folder of its config ``convnext_digits.py``, and of its results.
        quick_options: What a quick walk changes in the config.
        curves: The labels of the metrics to draw.
    """

    folder: str
    quick_options: Sequence[str]
    curves: Mapping[str, str]


TASKS = (
    Task(
        'mask_rcnn',
        ('train_cfg.max_epochs=1', 'train_cfg.val_interval=1', 'train_dataloader.dataset.indices=320'),
        {'coco/bbox_mAP': 'box AP', 'coco/segm_mAP': 'mask AP'},
    ),
    Task(
        'upernet',
        ('train_cfg.max_iters=60', 'train_cfg.val_interval=60', 'default_hooks.checkpoint.interval=60'),
        {'mIoU': 'mIoU'},
    ),
)


def demo(folder: Path, quick: bool = False) -> None:
    """Write the data, train, test and draw each model, and print the tables of metrics.

    Args:
        folder: Data, logs, checkpoints and pictures go here.
        quick: Take the same steps in two minutes, without learning much.

    Raises:
        UserError: The folder cannot be used, or a tool failed.
    """
    begin = time.time()
    folder = folder.absolute()
    data = folder / 'data'
    write_sample_data(data / 'digits')
    tables = {task.folder: _train_and_test(task, folder, data, quick) for task in TASKS}
    for name, table in tables.items():
        print(f'\n{name} on val images, digits never seen in training\n{table}')
    print(
        f'\n{time.time() - begin:.0f} s; curves, predictions next to the ground truth, logs and checkpoints: {folder}'
    )


def _train_and_test(task: Task, folder: Path, data: Path, quick: bool) -> str:
    """Run a task and return the table of its metrics on the val images."""
    config = CONFIGS / task.folder / 'convnext_digits.py'
    work_dir = folder / task.folder
    train_options = ['--cfg-options', *task.quick_options] if quick else []
    _call('train.py', config, '--work-dir', work_dir, '--overwrite', '--no-report', *train_options, data=data)
    checkpoint = (work_dir / 'last_checkpoint').read_text()
    drawn = work_dir / 'drawn'
    _call('test.py', config, checkpoint, '--work-dir', work_dir / 'test', '--show-dir', drawn, '--overwrite', data=data)
    draw_curves(work_dir, task.curves, folder / f'{task.folder}_curves.png')
    draw_predictions(drawn, folder / f'{task.folder}_predictions.png')
    return metrics_table(json.loads((work_dir / 'test' / 'metrics.json').read_text()))


def _call(tool: str, *args: str | Path, data: Path) -> None:
    """Run one of the tools as a user would."""
    command = [sys.executable, str(TOOLS / tool), *map(str, args)]
    print('\n$ ' + ' '.join(command), flush=True)
    done = subprocess.run(command, env=dict(os.environ, **{DATA_VARIABLE: str(data)}))
    if done.returncode:
        raise UserError(f'tools/{tool} ended with status {done.returncode}, see above')


def draw_curves(work_dir: Path, curves: Mapping[str, str], out: Path) -> None:
    """Draw training loss and validation metrics of the last run in a work folder.

    Args:
        work_dir: Work folder of a training.
        curves: The labels of the metrics to draw.
        out: Picture to write.
    """
    import matplotlib.pyplot as plt  # of the extra [demo]

    plt.switch_backend('Agg')
    log = max(work_dir.glob('*/vis_data/scalars.json'))  # folders are named by time
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    losses = [row for row in rows if 'loss' in row]
    figure, (loss_axes, metric_axes) = plt.subplots(1, 2, figsize=(10, 4))
    loss_axes.plot([row['iter'] for row in losses], [row['loss'] for row in losses])
    loss_axes.set(title='training loss', xlabel='iteration', ylim=(0, None))
    for name, label in curves.items():
        evaluations = [row for row in rows if name in row]
        steps = [row['step'] for row in evaluations]  # epochs or iterations, as in the training loop
        metric_axes.plot(steps, [row[name] for row in evaluations], marker='o', label=label)
    metric_axes.set(title='validation', xlabel='epoch' if 'epoch' in losses[0] else 'iteration', ylim=(0, None))
    metric_axes.legend()
    figure.tight_layout()
    figure.savefig(out, dpi=100)
    plt.close(figure)


def draw_predictions(drawn: Path, out: Path) -> None:
    """Put the first drawn val images, each as ground truth beside prediction, into one picture.

    Args:
        drawn: Folder that ``tools/test.py --show-dir`` has filled.
        out: Picture to write.
    """
    import matplotlib.pyplot as plt  # of the extra [demo]

    plt.switch_backend('Agg')
    images = sorted(path for path in drawn.rglob('*') if path.suffix in ('.jpg', '.png'))[:NUM_PICTURES]
    num_rows = -(-len(images) // NUM_COLUMNS)  # rounded up
    figure, grid = plt.subplots(num_rows, NUM_COLUMNS, figsize=(12, 2.1 * num_rows), squeeze=False)
    for axes in grid.flat:
        axes.axis('off')
    for axes, path in zip(grid.flat, images):
        axes.imshow(plt.imread(path))
    figure.suptitle('val images: ground truth (left) and prediction (right)')
    figure.tight_layout()
    figure.savefig(out, dpi=100)
    plt.close(figure)
