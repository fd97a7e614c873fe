"""Fit a config of the toolkits' zoos, with our backbone in it, to the layouts of our data."""

from __future__ import annotations

import copy
from typing import Any

from mmengine.config import Config, ConfigDict

from convnext_dense.errors import UserError
from convnext_dense.run.new_config.data import DataFacts
from convnext_dense.run.new_config.model import box_changes
from convnext_dense.run.options import nested_dicts

# Steps of pipelines that load labels which our layouts do not have.
OTHER_LABELS = ('LoadPanopticAnnotations', 'LoadProposals', 'LoadTrackAnnotations', 'LoadDepthAnnotation')
SIZE_KEYS = ('scale', 'scales', 'img_scale', 'crop_size', 'size', 'random_size_range')
MULTIPLE = 32  # sizes stay multiples of the largest stride


def fit_to_data(cfg: Config, facts: DataFacts, factor: float) -> Config:
    """Return a copy of a config that reads data of our layout.

    Args:
        cfg: Of mmdet or mmseg.
        facts: Of the data.
        factor: For all sizes of images in the pipelines.

    Raises:
        UserError: The model needs labels that the data do not have.
    """
    fitted = copy.deepcopy(cfg)
    if not facts.is_segmentation and not facts.has_masks:
        changes = box_changes(fitted.model)
        if not changes and _loads_masks(fitted):
            raise UserError(
                f'{fitted.model.type} needs outlines, but the data have only boxes: use a detector without masks'
            )
        _merge(fitted.model, changes)
    for split in ('train', 'val'):
        loader = fitted.get(f'{split}_dataloader')
        if not loader:
            raise UserError(f'{cfg.filename} has no {split}_dataloader: give a config that trains and validates')
        loader.dataset = _dataset(loader.dataset, split, facts, factor)
    fitted.train_dataloader.sampler = dict(
        type='InfiniteSampler' if facts.is_segmentation else 'DefaultSampler', shuffle=True
    )
    fitted.test_dataloader = copy.deepcopy(fitted.val_dataloader)
    for part in ('val', 'test'):
        fitted[f'{part}_evaluator'] = _evaluator(facts)
        fitted[f'{part}_cfg'] = dict(type=f'{part.title()}Loop')
    preprocessor = fitted.model.get('data_preprocessor')
    if preprocessor and preprocessor.get('batch_augments'):
        preprocessor['batch_augments'] = _scaled(preprocessor['batch_augments'], factor)
    return fitted


def _loads_masks(cfg: Config) -> bool:
    return any(step.get('with_mask') for step in nested_dicts(cfg.get('train_dataloader')))


def _merge(part: ConfigDict, changes: dict[str, Any]) -> None:
    for key, value in changes.items():
        if isinstance(value, dict):
            _merge(part[key], value)
        else:
            part[key] = value


def _evaluator(facts: DataFacts) -> dict[str, Any]:
    if facts.is_segmentation:
        return dict(type='IoUMetric', iou_metrics=['mIoU'])
    return dict(type='CocoMetric', metric=['bbox', 'segm'] if facts.has_masks else ['bbox'], format_only=False)


def _dataset(old: ConfigDict, split: str, facts: DataFacts, factor: float) -> dict[str, Any]:
    """Return a data set of our layout with the pipeline of the old one; mosaics keep their wrapper."""
    inner = old
    while 'pipeline' not in inner or 'dataset' in inner:
        if inner.get('type') == 'MultiImageMixDataset':
            pipeline = _fit_pipeline(inner.pipeline, facts, factor)
            return dict(inner, dataset=_dataset(inner.dataset, split, facts, factor), pipeline=pipeline)
        inner = inner['dataset'] if 'dataset' in inner else inner['datasets'][0]
    pipeline = _fit_pipeline(inner.pipeline, facts, factor)
    dataset: dict[str, Any]
    if facts.is_segmentation:
        part = dict(train='training', val='validation')[split]
        dataset = dict(type='BaseSegDataset', img_suffix=facts.image_suffix, seg_map_suffix='.png')
        dataset['data_prefix'] = dict(img_path=f'images/{part}', seg_map_path=f'annotations/{part}')
    else:
        dataset = dict(type='CocoDataset', ann_file=f'annotations/instances_{split}2017.json')
        dataset['data_prefix'] = dict(img=f'{split}2017/')
        if split == 'train':
            dataset['filter_cfg'] = dict(filter_empty_gt=True, min_size=MULTIPLE)
        else:
            dataset['test_mode'] = True
    return dict(dataset, pipeline=pipeline)


def _fit_pipeline(pipeline: list, facts: DataFacts, factor: float) -> list:
    fitted = []
    for step in pipeline:
        step = dict(_scaled(step, factor))
        if step['type'] in OTHER_LABELS or (not facts.is_segmentation and step.get('with_seg')):
            raise UserError(
                f'this model learns from {step["type"]}, labels that the data do not have: use another model'
            )
        if step['type'] == 'LoadAnnotations':
            step.pop('reduce_zero_label', None)  # the labels of our data begin at 0
            if not facts.is_segmentation:
                step['with_mask'] = bool(step.get('with_mask')) and facts.has_masks
        fitted.append(step)
    return fitted


def _scaled(value: Any, factor: float, is_size: bool = False) -> Any:
    """Return a part of a pipeline with all sizes in pixels multiplied; shares (floats) stay."""
    if factor == 1:
        return value
    if isinstance(value, dict):
        return {key: _scaled(item, factor, is_size or key in SIZE_KEYS) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_scaled(item, factor, is_size) for item in value)
    if is_size and isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return max(round(value * factor / MULTIPLE), 1) * MULTIPLE
    return value
