"""Draw the page of a training."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope

from convnext_dense.errors import UserError
from convnext_dense.images import read_image
from convnext_dense.results import Detections, LabelMap
from convnext_dense.run.html_page import NOTHING, HtmlPage
from convnext_dense.run.new_config.write import recipe_config
from convnext_dense.run.options import nested_dicts
from convnext_dense.run.report import detection, segmentation
from convnext_dense.run.report.work_dir import FinishedRun, read_run
from convnext_dense.run.train_test import test
from convnext_dense.swap.diff import differences, table

NUM_IMAGES = 4  # of the best ones, and of the worst
FEW_POINTS = 30  # of a curve, which are marked
MAX_CLASSES = 40  # in a picture of a confusion matrix
# Settings that every data set, machine and run changes.
NOT_COMPARED = (
    'work_dir', 'launcher', 'resume', 'load_from', 'train_pipeline', 'test_pipeline', 'metainfo', 'visualizer'
)  # fmt: skip


def write_report(work_dir: Path, out: Path | None = None, compare: Path | None = None) -> Path:
    """Test the best checkpoint of a training on its test set, and write a page about both.

    Args:
        work_dir: Of the training.
        out: The HTML file; default WORK_DIR/report.html.
        compare: Work folder of another training, whose settings, curves and metrics are put beside.

    Returns:
        The path of the page.

    Raises:
        UserError: A folder holds no finished training, matplotlib is not installed, or a file is in the way.
    """
    _matplotlib()
    run = read_run(work_dir)
    other = read_run(compare) if compare else None
    out = out or work_dir / 'report.html'
    page = HtmlPage(f'Training {run.config_file.stem}')
    results: detection.DetectionReport | segmentation.SegmentationReport
    with tempfile.TemporaryDirectory() as temporary:
        if run.config.get('default_scope') == 'mmseg':
            metrics, results = _test_segmentor(run, Path(temporary))
        else:
            metrics, results = _test_detector(run, Path(temporary))
    page.add_heading('Result', 'result')
    page.add_text(f'{run.checkpoint.name} on {len(results.images)} images of the test set')
    page.add_table(['metric', 'value'], _without_nothing(metrics))
    if isinstance(results, detection.DetectionReport):
        _add_detection(page, results)
    else:
        _add_segmentation(page, results)
    _add_curves(page, run, other)
    _add_settings(page, run, other)
    page.add_heading('Environment', 'environment')
    page.add_source(run.environment or 'not logged')
    page.write(out)
    return out


def _matplotlib() -> Any:
    try:
        pyplot = importlib.import_module('matplotlib.pyplot')
    except ModuleNotFoundError:
        raise UserError(
            "a report is drawn with matplotlib, which is not installed: pip install 'convnext-dense[demo]'"
        ) from None
    pyplot.switch_backend('Agg')
    return pyplot


def _test_detector(run: FinishedRun, folder: Path) -> tuple[dict[str, float], detection.DetectionReport]:
    pickled = folder / 'predictions.pkl'
    metrics = test(str(run.config_file), str(run.checkpoint), work_dir=str(folder / 'test'), out=str(pickled))
    evaluator = run.config.test_evaluator
    evaluator = evaluator[0] if isinstance(evaluator, list) else evaluator
    kinds = [evaluator.metric] if isinstance(evaluator.metric, str) else list(evaluator.metric)
    classes = _test_data(run.config).metainfo['classes']
    return metrics, detection.measure(pickled, Path(evaluator.ann_file), classes, kinds)


def _test_segmentor(run: FinishedRun, folder: Path) -> tuple[dict[str, float], segmentation.SegmentationReport]:
    maps = folder / 'maps'
    metrics = test(str(run.config_file), str(run.checkpoint), work_dir=str(folder / 'test'), out=str(maps))
    dataset = _test_data(run.config)
    entries = [dataset.get_data_info(i) for i in range(len(dataset))]
    return metrics, segmentation.measure(maps, entries, dataset.metainfo['classes'])


def _test_data(cfg: Config) -> Any:
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return DATASETS.build(cfg.test_dataloader.dataset)


def _without_nothing(metrics: Mapping[str, float]) -> list[tuple[str, float]]:
    """Return the metrics that could be measured: COCO writes -1 where there is no object."""
    return [(name, value) for name, value in metrics.items() if value != -1 and not name.endswith('time')]


def _add_detection(page: HtmlPage, results: detection.DetectionReport) -> None:
    page.add_heading('Average precision by class and size', 'classes')
    for kind, values in results.average_precision.items():
        page.add_text({'bbox': 'Boxes', 'segm': 'Masks'}[kind] + ', mean over IoU 0.5 to 0.95')
        rows = [
            (name, *(float(value) if np.isfinite(value) else NOTHING for value in values[label]))
            for label, name in enumerate(results.classes)
        ]
        page.add_table(['class', *detection.SIZES], rows)
    page.add_heading('Precision and recall', 'precision-recall')
    figure, axes = _matplotlib().subplots(figsize=(6, 4))
    recall = np.linspace(0, 1, results.precision.shape[1])
    for label, name in enumerate(results.classes[:MAX_CLASSES]):
        if np.isfinite(results.precision[label]).any():
            axes.plot(recall, results.precision[label], label=name)
    axes.set(xlabel='recall', ylabel='precision', xlim=(0, 1), ylim=(0, 1.02))
    axes.legend(fontsize='small')
    page.add_figure(figure, 'Boxes at an IoU of 0.5')
    page.add_heading('Confusion', 'confusion')
    page.add_text(f'Objects; detections from a score of {detection.SCORE} on, at an IoU of at least {detection.IOU}.')
    _add_confusion(page, results.confusion, [*results.classes, 'nothing'])
    pairs = [(image.f1, image.path, image.truth, image.found) for image in results.images]
    _add_images(page, pairs, 'F1')


def _add_segmentation(page: HtmlPage, results: segmentation.SegmentationReport) -> None:
    page.add_heading('IoU by class', 'classes')
    pixels = results.confusion.sum(axis=1)
    rows = [
        (name, float(100 * iou) if np.isfinite(iou) else NOTHING, int(count))
        for name, iou, count in zip(results.classes, results.iou, pixels)
    ]
    page.add_table(['class', 'IoU, %', 'pixels'], rows)
    page.add_heading('Confusion', 'confusion')
    _add_confusion(page, results.confusion, results.classes)
    pairs = [(image.accuracy, image.path, image.truth, image.found) for image in results.images]
    _add_images(page, pairs, 'accuracy')


def _add_confusion(page: HtmlPage, confusion: np.ndarray, names: Sequence[str]) -> None:
    if len(names) > MAX_CLASSES:
        page.add_text(f'{len(names)} classes are too many to draw; the ten most frequent mistakes:')
        wrong = confusion - np.diag(np.diag(confusion))
        order = np.argsort(-wrong, axis=None)[:10]
        rows = [(names[i // len(names)], names[i % len(names)], int(wrong.flat[i])) for i in order.tolist()]
        page.add_table(['truth', 'prediction', 'count'], rows)
        return
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    side = 2 + 0.4 * len(names)
    figure, axes = _matplotlib().subplots(figsize=(side + 1, side))
    axes.imshow(shares, cmap='Blues', vmin=0, vmax=1)
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel='prediction', ylabel='truth')
    for i, row in enumerate(confusion.tolist()):
        for k, count in enumerate(row):
            if count:
                colour = 'white' if shares[i, k] > 0.5 else 'black'
                axes.text(k, i, f'{count:,}', ha='center', va='center', fontsize=7, color=colour)
    page.add_figure(figure, 'Rows are truth, columns predictions; colours are shares of a row')


def _add_images(page: HtmlPage, pairs: Iterable[tuple[float, Path, Any, Any]], measure: str) -> None:
    """Add the worst and the best images, truth on the left and prediction on the right."""
    ordered = sorted(pairs, key=lambda pair: pair[0])
    for title, name, chosen in (
        ('Worst images', 'worst', ordered[:NUM_IMAGES]),
        ('Best images', 'best', ordered[::-1][:NUM_IMAGES]),
    ):
        page.add_heading(f'{title}: truth, and prediction', name)
        for value, path, truth, found in chosen:
            try:
                image = read_image(path)
            except UserError:  # the page is worth having without it
                continue
            both = np.concatenate([_drawn(truth, image, is_truth=True), _drawn(found, image)], axis=1)
            page.add_picture(both, f'{path.name}, {measure} {value:.2f}', width=960)


def _drawn(labels: Detections | LabelMap, image: np.ndarray, is_truth: bool = False) -> np.ndarray:
    """Draw labels: names only where there are several, scores only of predictions."""
    if isinstance(labels, LabelMap):
        return labels.draw(image)
    return labels.draw(image, with_names=len(labels.names) > 1, with_scores=not is_truth)


def _add_curves(page: HtmlPage, run: FinishedRun, other: FinishedRun | None) -> None:
    page.add_heading('Curves', 'curves')
    figure, (loss_axes, metric_axes) = _matplotlib().subplots(1, 2, figsize=(11, 4))
    for one, style in ((run, '-'), (other, '--')):
        if one is None:
            continue
        losses = one.losses
        loss_axes.plot(
            [row.get('iter', row['step']) for row in losses],
            [row['loss'] for row in losses],
            style,
            marker='.' if len(losses) < FEW_POINTS else None,
            label=one.path.name,
        )
        for name in _main_metrics(one):
            rows = [row for row in one.evaluations if name in row]
            steps, values = [row['step'] for row in rows], [row[name] for row in rows]
            metric_axes.plot(steps, values, style, marker='o', label=f'{name}, {one.path.name}')
    loss_axes.set(title='training loss', xlabel='iteration', ylim=(0, None))
    loss_axes.legend(fontsize='small')
    metric_axes.set(title='validation', xlabel='epoch or iteration', ylim=(0, None))
    if metric_axes.lines:
        metric_axes.legend(fontsize='small')
    page.add_figure(figure, 'Training loss and validation')


def _main_metrics(run: FinishedRun) -> list[str]:
    names = {name for row in run.evaluations for name in row}
    return sorted(name for name in names if name.endswith('_mAP') or name == 'mIoU')


def _add_settings(page: HtmlPage, run: FinishedRun, other: FinishedRun | None) -> None:
    page.add_heading('Settings that differ from the recipe', 'settings')
    recipe = _recipe_of(run.config)
    if recipe is None:
        page.add_text('The backbone is no ConvNeXt of a recipe.')
    else:
        page.add_text(f'The recipe is configs/{recipe}.')
        page.add_source(_changes(_configs_folder(recipe), run.config))
    if other:
        page.add_heading(f'Settings that differ from {other.path}', 'compare')
        page.add_source(_changes(other.config, run.config))
        page.add_table(['metric of the last validation', run.path.name, other.path.name], _last_metrics(run, other))
    page.add_heading('Config', 'config')
    page.add_source(run.config.pretty_text)


def _configs_folder(recipe: str) -> Config:
    return Config.fromfile(Path(__file__).resolve().parents[2] / '.mim' / 'configs' / recipe)


def _recipe_of(cfg: Config) -> str | None:
    backbones = [part for part in nested_dicts(cfg.model) if part.get('type') == 'ConvNeXt']
    if not backbones or not isinstance(backbones[0].get('arch'), str):
        return None
    recipe = {'mmseg': 'upernet'}.get(cfg.get('default_scope'), 'mask_rcnn')
    if cfg.model.type == 'CascadeRCNN':
        recipe = 'cascade_mask_rcnn'
    return recipe_config(recipe, backbones[0]['arch'])


def _changes(before: Config, after: Config) -> str:
    found = differences(before.to_dict(), after.to_dict())
    return table([change for change in found if change.key not in NOT_COMPARED], ())


def _last_metrics(run: FinishedRun, other: FinishedRun) -> list[tuple[str, object, object]]:
    last = [one.evaluations[-1] if one.evaluations else {} for one in (run, other)]
    names = [name for name in last[0] if name in last[1] and name not in ('step', 'data_time', 'time')]
    return [(name, last[0][name], last[1][name]) for name in names]
