"""What a config says about the data of one split."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS

from convnext_dense.data_check.findings import Finding


@dataclass(frozen=True)
class Split:
    """One innermost data set of a dataloader.

    Attributes:
        name: 'train', 'val' or 'test'.
        key: Where the data set is in the config, such as 'train_dataloader.dataset'.
        settings: Its part of the config.
        dataset: The data set, built without reading annotations and without a pipeline.
        evaluators: What evaluates the split; empty in training.
    """

    name: str
    key: str
    settings: Mapping[str, Any]
    dataset: BaseDataset
    evaluators: Sequence[Mapping[str, Any]] = field(default=())

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Names of the classes in the order of their labels; None if the data set has none."""
        classes = self.dataset.metainfo.get('classes')
        return None if classes is None or isinstance(classes, str) else tuple(classes)

    @property
    def uses_masks(self) -> bool:
        """Whether masks of objects are trained on or evaluated."""
        return any(step.get('with_mask') for step in self._steps()) or any(
            'segm' in as_list(evaluator.get('metric')) for evaluator in self.evaluators
        )

    @property
    def is_local(self) -> bool:
        """Whether the files can be opened by path."""
        backends = [self.settings.get('backend_args'), *(step.get('backend_args') for step in self._steps())]
        paths = [self.dataset.ann_file, *self.dataset.data_prefix.values()]
        remote = any(isinstance(path, str) and '://' in path for path in paths)
        return not remote and not any(backend and backend.get('backend') != 'local' for backend in backends)

    @property
    def obeys_orientation(self) -> bool:
        """Whether images are turned by their EXIF orientation when they are loaded, as mmcv does by default."""
        for step in self._steps():
            color_type = step.get('color_type', 'color')
            if step_name(step) == 'LoadImageFromFile' and color_type not in ('color', 'grayscale'):
                return False
        return True

    @property
    def label_map_decoder(self) -> str:
        """What decodes label maps: 'pillow', mmseg's default, or 'cv2'."""
        for step in self._steps():
            if step_name(step) == 'LoadAnnotations' and 'imdecode_backend' in step:
                return str(step['imdecode_backend'])
        return 'pillow'

    def _steps(self) -> Iterator[Mapping[str, Any]]:
        """Yield every transform of the pipeline, nested ones too."""
        for _, part in dicts_with_key(self.settings.get('pipeline') or []):
            yield part


def as_list(value: Any) -> list:
    """Return a list or tuple as a list, None as an empty one, and any other value as a list of it."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def step_name(part: Mapping[str, Any]) -> str:
    """Return the name of the class that a part of a config builds, without its scope."""
    type_ = part.get('type', '')
    return type_.__name__ if isinstance(type_, type) else str(type_).rsplit('.', 1)[-1]


def dicts_with_key(value: Any, key: str = '') -> Iterator[tuple[str, Any]]:
    """Yield every dict inside a part of a config with its key as ``--cfg-options`` writes it, outer ones first."""
    if isinstance(value, Mapping):
        yield key, value
        items: Sequence[tuple[Any, Any]] = list(value.items())
    elif isinstance(value, (list, tuple)):
        items = list(enumerate(value))
    else:
        return
    for name, item in items:
        yield from dicts_with_key(item, f'{key}.{name}' if key else str(name))


def innermost_datasets(dataset: dict[str, Any], key: str = 'dataset') -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the data sets inside wrappers such as RepeatDataset and ConcatDataset, with their keys."""
    if dataset.get('datasets'):
        for index, part in enumerate(dataset['datasets']):
            yield from innermost_datasets(part, f'{key}.datasets.{index}')
    elif 'dataset' in dataset:
        yield from innermost_datasets(dataset['dataset'], f'{key}.dataset')
    else:
        yield key, dataset


def splits_of(cfg: Config, name: str) -> tuple[list[Split], list[Finding]]:
    """Build the data sets of a split without reading their annotations.

    Args:
        cfg: A config of mmdet or mmseg, whose toolkit can be imported.
        name: 'train', 'val' or 'test'.

    Returns:
        The data sets that could be built, and a fatal finding for each other one.
    """
    evaluators = [] if name == 'train' else as_list(cfg.get(f'{name}_evaluator'))
    splits, findings = [], []
    for key, settings in innermost_datasets(cfg[f'{name}_dataloader']['dataset'], f'{name}_dataloader.dataset'):
        scope = cfg.get('default_scope') or 'mmengine'
        try:
            kind = _class_of(settings, scope)
            dataset = _build_lazily(settings, scope) if _builds_lazily(kind) else None
        except Exception as error:  # whatever a data set's constructor raises, such as mmseg for unknown classes
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            findings.append(Finding(key, f'the data set cannot be built: {reason}', f'correct {key}'))
            continue
        if dataset is None:
            what = f'{kind.__name__} cannot be built without reading its data, so these were not checked'
            findings.append(Finding(key, what, fatal=False))
        else:
            splits.append(Split(name, key, settings, dataset, evaluators))
    return splits, findings


def _class_of(settings: Mapping[str, Any], scope: str) -> type:
    """Return the class of a data set.

    Raises:
        KeyError: No registry knows its name.
    """
    kind: Any = settings['type']
    if isinstance(kind, type):
        return kind
    with DATASETS.switch_scope_and_registry(scope) as registry:
        found = registry.get(kind)
    if found is None:
        raise KeyError(f'{kind} is not in the registry of data sets of {scope}')
    return found


def _builds_lazily(kind: type) -> bool:
    """Return whether a class is mmengine's ``BaseDataset`` and takes the arguments that keep it from reading."""
    if not issubclass(kind, BaseDataset):
        return False
    parameters = inspect.signature(kind).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return takes_any or {'lazy_init', 'pipeline'} <= set(parameters)


def _build_lazily(settings: Mapping[str, Any], scope: str) -> Any:
    """Build a data set that has joined its paths and knows its classes, and has read no annotation."""
    changed = dict(settings, lazy_init=True, pipeline=[])
    with DATASETS.switch_scope_and_registry(scope) as registry:
        return registry.build(changed)


def image_folder(split: Split) -> Path:
    """Return the folder that file names of a COCO file begin at."""
    return Path(split.dataset.data_prefix.get('img', ''))


def relative(path: str | Path) -> str:
    """Return a path as short as it can be written from the working folder."""
    path = os.fspath(path)
    short = os.path.relpath(path)
    return path if short.startswith('..') else short
