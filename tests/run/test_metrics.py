"""Metrics of a run, as people read them."""

import json
import math

import pytest
from mmengine.evaluator import Evaluator

from convnext_dense.run.metrics import MetricsHook, metrics_json, metrics_table


def test_table_of_metrics():
    metrics = {
        'coco/bbox_mAP': 0.5,
        'coco/bbox_mAP_50': 0.75,
        'coco/bbox_mAP_75': 0.6,
        'coco/bbox_mAP_s': -1.0,
        'coco/bbox_mAP_m': 0.4,
        'coco/bbox_mAP_l': 0.7,
    }
    assert metrics_table(metrics).splitlines() == [
        '            AP    AP50    AP75    AP_S    AP_M    AP_L',
        'box        0.5    0.75     0.6       -     0.4     0.7',
    ]
    assert metrics_table({'aAcc': 90.5, 'mIoU': 46.7, 'mAcc': 58.0}).splitlines() == [
        '          mIoU    mAcc    aAcc',
        '          46.7      58    90.5',
    ]
    assert metrics_table({'accuracy/top1': 80.5}) == 'accuracy/top1                  80.5'


def test_no_detection_is_an_ap_of_zero(capsys):
    """mmdet's CocoMetric returns no metric at all then; other metrics stay as they are."""
    evaluation = pytest.importorskip('mmdet.evaluation')
    metric = evaluation.CocoMetric.__new__(evaluation.CocoMetric)
    metric.metrics, metric.prefix, metric.format_only = ['bbox'], 'coco', False
    runner = type('Runner', (), {})()
    runner.val_loop = runner.test_loop = type('Loop', (), {})()
    runner.val_loop.evaluator = Evaluator([])
    hook = MetricsHook()
    hook.after_val_epoch(runner, {})
    assert hook.metrics is None and capsys.readouterr().out == ''
    runner.val_loop.evaluator.metrics = [metric]
    hook.after_test_epoch(runner, {})
    assert hook.metrics == {'coco/bbox_mAP': 0.0, 'coco/bbox_mAP_50': 0.0, 'coco/bbox_mAP_75': 0.0}
    assert 'no detection reached the score threshold' in capsys.readouterr().out
    metric.format_only = True
    hook.after_test_epoch(runner, {})
    assert hook.metrics is None and capsys.readouterr().out == '', 'nothing was measured'
    hook.after_val_epoch(runner, {'coco/bbox_mAP': 0.5})
    assert hook.metrics == {'coco/bbox_mAP': 0.5}


def test_metrics_are_valid_json():
    text, undefined = metrics_json({'mIoU': 46.5, 'IoU.bird': math.nan, 'loss': math.inf, 'count': 3})
    assert json.loads(text, parse_constant=pytest.fail) == {'mIoU': 46.5, 'IoU.bird': None, 'loss': None, 'count': 3.0}
    assert undefined == ['IoU.bird', 'loss']
