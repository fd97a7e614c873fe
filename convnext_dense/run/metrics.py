"""Keep, print and write the metrics of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.evaluator import Evaluator
from mmengine.hooks import Hook
from mmengine.runner import Runner


def metrics_table(metrics: Mapping[str, Any]) -> str:
    """A few lines for people out of mmengine's metrics."""

    def row(title: str, values: list) -> str:
        # COCO says -1 where there is nothing to measure.
        cells = [
            value if isinstance(value, str) else '-' if value in (None, -1) else f'{value:.4g}' for value in values
        ]
        return f'{title:<6}' + ''.join(f'{cell:>8}' for cell in cells)

    columns = {'AP': '', 'AP50': '_50', 'AP75': '_75', 'AP_S': '_s', 'AP_M': '_m', 'AP_L': '_l'}
    rows = []
    for title, kind in (('box', 'bbox'), ('mask', 'segm')):
        prefix = next((key[: -len('mAP')] for key in metrics if key.endswith(f'{kind}_mAP')), None)
        if prefix is not None:
            rows.append(row(title, [metrics.get(f'{prefix}mAP{suffix}') for suffix in columns.values()]))
    if rows:
        return '\n'.join([row('', list(columns)), *rows])
    if 'mIoU' in metrics:
        names = [name for name in ('mIoU', 'mAcc', 'aAcc') if name in metrics]
        return '\n'.join([row('', names), row('', [metrics[name] for name in names])])
    return '\n'.join(f'{name:<30} {value}' for name, value in metrics.items())


class MetricsHook(Hook):
    """Keeps the metrics of the last validation or test."""

    metrics: dict[str, float] | None = None

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        self.metrics = metrics or _nothing_detected(runner.val_loop.evaluator)

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        self.metrics = metrics or _nothing_detected(runner.test_loop.evaluator)


def _nothing_detected(evaluator: Evaluator) -> dict[str, float] | None:
    """COCO's metrics of no detection at all: AP is 0, where mmdet's CocoMetric returns nothing."""
    coco = [metric for metric in evaluator.metrics if type(metric).__name__ == 'CocoMetric']
    if coco:
        print('\nno detection reached the score threshold (test_cfg.rcnn.score_thr): every AP is 0')
    return {
        f'{metric.prefix}/{kind}_{name}': 0.0
        for metric in coco
        for kind in metric.metrics
        for name in ('mAP', 'mAP_50', 'mAP_75')
    } or None
