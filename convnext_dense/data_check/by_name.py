"""mmdet's COCO data set and metric, with labels that follow the names of classes.

mmdet takes the ids of the categories in the order of the annotation file, whatever the order of ``metainfo.classes``:
if they differ, labels and predictions are permuted without an error. This module imports mmdet; its classes are
registered in mmengine's root registries, so that a config can name them with
``custom_imports = dict(imports=['convnext_dense.data_check.by_name'])``.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from mmdet.datasets import CocoDataset
from mmdet.datasets.api_wrappers import COCO
from mmdet.evaluation import CocoMetric
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.fileio import get_local_path
from mmengine.registry import DATASETS, METRICS
from pycocotools import mask as coco_mask

from convnext_dense.data_check.coco import OUTSIDE_TOLERANCE
from convnext_dense.data_check.splits import as_list, dicts_with_key, innermost_datasets


class CocoByName(COCO):
    """An annotation file whose missing values are what COCO defines them to be.

    Args:
        annotation_file: Path of the file.
        masks: Masks are used; objects without one become crowd regions, which are ignored.
    """

    def __init__(self, annotation_file: str | None = None, masks: bool = False) -> None:
        self._masks = masks
        super().__init__(annotation_file)

    def createIndex(self) -> None:  # the name is pycocotools'
        complete_annotations(self.dataset, self._masks)
        super().createIndex()

    def get_cat_ids(
        self, cat_names: Sequence[str] = (), sup_names: Sequence[str] = (), cat_ids: Sequence[int] = ()
    ) -> list[int]:
        """Return the ids of categories; with ``cat_names`` in the order of these names."""
        found = super().get_cat_ids(cat_names, sup_names, cat_ids)
        if not cat_names:
            return found
        positions = {name: position for position, name in enumerate(cat_names)}
        return sorted(found, key=lambda id_: positions[self.cats[id_]['name']])


def complete_annotations(dataset: dict, masks: bool) -> None:
    """Fill in what annotations leave out, in place.

    Args:
        dataset: The content of a COCO file.
        masks: As for :class:`CocoByName`.
    """
    sizes = {image['id']: (image['height'], image['width']) for image in dataset.get('images', [])}
    annotations = dataset.get('annotations', [])
    next_id = max((annotation['id'] for annotation in annotations), default=0) + 1
    for annotation in annotations:
        annotation.setdefault('iscrowd', 0)
        if annotation['id'] == 0:  # pycocotools takes 0 for "matches nothing"
            annotation['id'] = next_id
        height, width = sizes[annotation['image_id']]
        annotation['bbox'] = clipped_box(annotation['bbox'], height, width)
        if masks:
            _complete_mask(annotation)
        if 'area' not in annotation:
            annotation['area'] = _area_of(annotation, height, width)


def clipped_box(box: list, height: int, width: int) -> list:
    """Return a box [x, y, width, height] inside an image; as it is if it sticks out by rounding only."""
    left, top, right, bottom = box[0], box[1], box[0] + box[2], box[1] + box[3]
    beyond = max(-left, -top, right - width, bottom - height)
    if beyond <= OUTSIDE_TOLERANCE:
        return box
    left, top = max(left, 0), max(top, 0)
    return [left, top, min(right, width) - left, min(bottom, height) - top]


def _complete_mask(annotation: dict) -> None:
    """Drop polygons of fewer than three corners; an object without a mask becomes a crowd region of its box."""
    mask = annotation.get('segmentation')
    if isinstance(mask, list):
        mask = [polygon for polygon in mask if len(polygon) >= 6]
    if not mask:
        annotation['iscrowd'] = 1
        x, y, width, height = annotation['bbox']
        mask = [[x, y, x + width, y, x + width, y + height, x, y + height]]
    annotation['segmentation'] = mask


def _area_of(annotation: Mapping, height: int, width: int) -> float:
    """Return the area of an object in pixels: of its mask, without one of its box."""
    mask = annotation.get('segmentation')
    if not mask:
        return float(annotation['bbox'][2] * annotation['bbox'][3])
    if isinstance(mask, list) or isinstance(mask['counts'], list):
        encoded = coco_mask.frPyObjects(mask, height, width)
        mask = coco_mask.merge(encoded) if isinstance(encoded, list) else encoded
    return float(coco_mask.area(mask))


@DATASETS.register_module()
class CocoDatasetByName(CocoDataset):
    """mmdet's ``CocoDataset``, with label = index of the category's name in ``metainfo.classes``.

    Args:
        masks: The pipeline loads masks.
        *args, **kwargs: As for ``CocoDataset``.
    """

    def __init__(self, *args: Any, masks: bool = False, **kwargs: Any) -> None:
        self.COCOAPI = functools.partial(CocoByName, masks=masks)
        super().__init__(*args, **kwargs)


@METRICS.register_module()
class CocoMetricByName(CocoMetric):
    """mmdet's ``CocoMetric``, with label = index of the category's name in ``metainfo.classes``.

    Args:
        ann_file, **kwargs: As for ``CocoMetric``.
    """

    def __init__(self, ann_file: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if ann_file is not None:
            with get_local_path(ann_file, backend_args=self.backend_args) as path:
                self._coco_api = CocoByName(path, masks='segm' in self.metrics)


BY_NAME = {CocoDataset: CocoDatasetByName, CocoMetric: CocoMetricByName}


def follow_names(cfg: Config, names: Sequence[str]) -> None:
    """Let the splits ``names`` of a config, such as 'train', use the classes of this module instead of mmdet's."""
    for name in names:
        for _, settings in innermost_datasets(cfg[f'{name}_dataloader']['dataset']):
            if _replace(settings, DATASETS):
                steps = dicts_with_key(settings.get('pipeline') or [])
                settings['masks'] = any(step.get('with_mask') for _, step in steps)
        for evaluator in as_list(cfg.get(f'{name}_evaluator')):
            _replace(evaluator, METRICS)
    imports = cfg.get('custom_imports') or dict(imports=[], allow_failed_imports=False)
    modules = as_list(imports['imports'])
    if __name__ not in modules:  # for the dumped config in other tools
        cfg.custom_imports = dict(imports, imports=[*modules, __name__])


def _replace(settings: Any, registry: Any) -> bool:
    """Exchange the type of a data set or metric for the one of this module; return whether there is one."""
    type_ = settings.get('type')
    if isinstance(type_, str):
        with registry.switch_scope_and_registry('mmdet') as scoped:
            type_ = scoped.get(type_)
    if type_ not in BY_NAME:
        return False
    settings['type'] = BY_NAME[type_].__name__
    return True


def reads_coco(dataset: BaseDataset) -> bool:
    """Return whether a data set reads a plain COCO file of objects."""
    return isinstance(dataset, CocoDataset) and type(dataset).COCOAPI is COCO


def is_by_name(dataset: BaseDataset, evaluators: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether a data set, and every metric that reads an annotation file, follow names."""
    types = [evaluator.get('type') for evaluator in evaluators if evaluator.get('ann_file')]
    return isinstance(dataset, CocoDatasetByName) and all(type_ == CocoMetricByName.__name__ for type_ in types)
