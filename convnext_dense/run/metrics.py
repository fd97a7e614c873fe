"""Keep and print the metrics of a run."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.evaluator import Evaluator
from mmengine.hooks import Hook
from mmengine.runner import Runner

# Columns of the table of a detector, and how the names of mmdet's metrics end.
AP_COLUMNS = {'AP': 'mAP', 'AP50': 'mAP_50', 'AP75': 'mAP_75', 'AP_S': 'mAP_s', 'AP_M': 'mAP_m', 'AP_L': 'mAP_l'}
SEGMENTATION_COLUMNS = ('mIoU', 'mAcc', 'aAcc')


def metrics_table(metrics: Mapping[str, Any]) -> str:
    """Format metrics for people: box and mask AP of detectors, mIoU of segmentors, names and values of others.

    Args:
        metrics: Values by mmengine's names, such as ``coco/bbox_mAP``.
    """
    lines = []
    for title, kind in (('box', 'bbox'), ('mask', 'segm')):
        prefix = _prefix_of(metrics, kind)
        if prefix is not None:
            lines.append(_row(title, [metrics.get(prefix + name) for name in AP_COLUMNS.values()]))
    if lines:
        return '\n'.join([_row('', list(AP_COLUMNS)), *lines])
    if 'mIoU' in metrics:
        names = [name for name in SEGMENTATION_COLUMNS if name in metrics]
        return '\n'.join([_row('', names), _row('', [metrics[name] for name in names])])
    return '\n'.join(f'{name:<30} {value}' for name, value in metrics.items())


def metrics_json(metrics: Mapping[str, Any]) -> tuple[str, list[str]]:
    """Return metrics as JSON, and the names of those that are NaN or infinite, which JSON writes as ``null``."""
    values: dict[str, float | None] = {}
    for name, value in metrics.items():
        number = float(value)
        values[name] = number if math.isfinite(number) else None
    return json.dumps(values, indent=2) + '\n', [name for name, value in values.items() if value is None]


def _prefix_of(metrics: Mapping[str, Any], kind: str) -> str | None:
    """Return what stands before ``mAP`` in the names of a kind of metrics, such as ``coco/bbox_``."""
    for name in metrics:
        if name.endswith(f'{kind}_mAP'):
            return name.removesuffix('mAP')
    return None


def _row(title: str, values: Sequence[str | float | None]) -> str:
    cells = []
    for value in values:
        if isinstance(value, str):
            cells.append(value)
        elif value is None or value == -1:  # COCO writes -1 where there is nothing to measure
            cells.append('-')
        else:
            cells.append(f'{value:.4g}')
    return f'{title:<6}' + ''.join(f'{cell:>8}' for cell in cells)


class MetricsHook(Hook):
    """Keep the metrics of the last validation or test.

    Attributes:
        metrics: Values by mmengine's names; None before the first evaluation.
    """

    metrics: dict[str, float] | None = None

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        self.metrics = metrics or _metrics_of_no_detection(runner.val_loop.evaluator)

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        self.metrics = metrics or _metrics_of_no_detection(runner.test_loop.evaluator)


def _metrics_of_no_detection(evaluator: Evaluator) -> dict[str, float] | None:
    """Return an AP of 0 for every kind of mmdet's CocoMetric, which itself returns nothing if nothing was detected."""
    mmdet_evaluation = sys.modules.get('mmdet.evaluation')  # imported if there is a CocoMetric
    if mmdet_evaluation is None:
        return None
    coco_metric = mmdet_evaluation.CocoMetric
    metrics = {}
    for metric in evaluator.metrics:
        # Subclasses that compute other metrics give them other names.
        names_are_known = getattr(type(metric), 'compute_metrics', None) is coco_metric.compute_metrics
        if names_are_known and not metric.format_only:
            for kind in metric.metrics:
                for name in ('mAP', 'mAP_50', 'mAP_75'):
                    metrics[f'{metric.prefix}/{kind}_{name}'] = 0.0
    if not metrics:
        return None
    print('\nno detection reached the score threshold (test_cfg.rcnn.score_thr): every AP is 0')
    return metrics
