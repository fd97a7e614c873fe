"""Check the data of a run before a model is built."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mmengine.config import Config

from convnext_dense.data_check import cache
from convnext_dense.data_check.coco import CocoRules, ImageRecord, check_coco
from convnext_dense.data_check.config import check_config
from convnext_dense.data_check.findings import Finding
from convnext_dense.data_check.images import SizedImage, check_images
from convnext_dense.data_check.label_maps import LabelRules, check_label_maps
from convnext_dense.data_check.splits import Split, image_folder, splits_of
from convnext_dense.toolkits import check_toolkit

BY_NAME_MODULE = 'convnext_dense.data_check.by_name'


def follow_names(cfg: Config, names: Sequence[str]) -> None:
    """Let labels follow the names of classes in a config of mmdet; configs of mmseg have no labels by position.

    Args:
        cfg: A config, which is changed.
        names: Splits, of 'train', 'val' and 'test'.
    """
    if cfg.get('default_scope') == 'mmdet':
        importlib.import_module(BY_NAME_MODULE).follow_names(cfg, names)


def check_data(
    cfg: Config, names: Sequence[str] = ('train', 'val'), *, decode: bool = False, use_cache: bool = True
) -> list[Finding]:
    """Check a config and the data that it names.

    Files are opened only if the config can be used.

    Args:
        cfg: A config of mmdet or mmseg, after ``follow_names``.
        names: Splits, of 'train', 'val' and 'test'; those without a dataloader in the config are left out.
        decode: Decode the pixels of every image instead of reading headers.
        use_cache: Take findings of an earlier check if no file has changed since.

    Returns:
        What was found; empty if everything is as it should be.

    Raises:
        UserError: The toolkit of the config cannot be imported.
    """
    check_toolkit(cfg.get('default_scope') or 'mmengine')
    splits: list[Split] = []
    findings: list[Finding] = []
    for name in names:
        if cfg.get(f'{name}_dataloader'):
            found, problems = splits_of(cfg, name)
            splits += found
            findings += problems
    findings += check_config(cfg, splits)
    if any(finding.fatal for finding in findings):
        return findings
    for split in splits:
        findings += _check_split(cfg, split, decode, use_cache)
    return findings


def _check_split(cfg: Config, split: Split, decode: bool, use_cache: bool) -> list[Finding]:
    """Check the files of one data set."""
    if not split.is_local:
        return [Finding(split.key, 'the data are not on local disks and were not checked', fatal=False)]
    if cfg.get('default_scope') == 'mmdet':
        by_name = importlib.import_module(BY_NAME_MODULE)
        if by_name.reads_coco(split.dataset):
            return _check_detection(split, by_name.is_by_name(split.dataset, split.evaluators), decode, use_cache)
    elif hasattr(split.dataset, 'reduce_zero_label'):
        return _check_segmentation(split, decode, use_cache)
    return [Finding(split.key, f'files of a {type(split.dataset).__name__} were not checked', fatal=False)]


def _check_detection(split: Split, by_name: bool, decode: bool, use_cache: bool) -> list[Finding]:
    """Check the annotation file and the images of a detection data set."""
    dataset = split.dataset
    filter_cfg = {} if dataset.test_mode else dataset.filter_cfg or {}
    rules = CocoRules(
        classes=split.classes or (),
        masks=split.uses_masks,
        annotations_optional=bool(split.evaluators) and all(e.get('format_only') for e in split.evaluators),
        by_name=by_name,
        drops_empty=filter_cfg.get('filter_empty_gt', False),
        min_size=filter_cfg.get('min_size', 0),
        key=split.key,
    )
    annotation_file = Path(dataset.ann_file)
    evaluated = [e['ann_file'] for e in split.evaluators if e.get('ann_file')]
    folder = image_folder(split)
    settings = dict(
        asdict(rules),
        annotation_file=str(annotation_file.absolute()),
        folder=str(folder.absolute()),
        evaluated=evaluated,
        obeys_orientation=split.obeys_orientation,
        decode=decode,
    )
    if use_cache and (known := cache.recall(settings)) is not None:
        return known
    files = [(str(path), cache.stamp(path)) for path in [annotation_file.absolute(), *map(Path, evaluated)]]
    findings, images = check_coco(annotation_file, rules)
    for path in evaluated:
        if not _is_same_file(annotation_file, Path(path)):
            findings += _check_evaluated(Path(path), rules, images, split)
    sized = []
    for image in images:
        path = str(folder.absolute() / image.file_name)
        sized.append(SizedImage(path, f'image {image.id}', image.height, image.width))
    files += [(image.path, cache.stamp(image.path)) for image in sized]
    findings += check_images(sized, str(annotation_file), split.key, split.obeys_orientation, decode)
    cache.remember(settings, files, findings)
    return findings


def _is_same_file(first: Path, second: Path) -> bool:
    return first.exists() and second.exists() and first.samefile(second)


def _check_evaluated(path: Path, rules: CocoRules, images: Sequence[ImageRecord], split: Split) -> list[Finding]:
    """Check the annotation file of a metric, which is another one than that of the data."""
    key = f'{split.name}_evaluator.ann_file'
    findings, evaluated = check_coco(path, rules)
    if {image[:2] for image in evaluated} != {image[:2] for image in images}:  # ids and names
        what = f'{path} has other images than {split.dataset.ann_file}, which are tested'
        findings.append(Finding(key, what, f'set {key}={split.dataset.ann_file}'))
    return findings


def _check_segmentation(split: Split, decode: bool, use_cache: bool) -> list[Finding]:
    """Check the images and label maps of a segmentation data set."""
    dataset: Any = split.dataset
    try:
        samples = dataset.load_data_list()
    except (OSError, AssertionError) as error:  # mmseg asserts that ann_file exists
        return [Finding(split.key, f'the files cannot be listed: {error}', f'correct {split.key}.data_prefix')]
    if not samples:
        folder = dataset.data_prefix.get('img_path')
        what = f'there is no image *{dataset.img_suffix} in {folder}'
        return [Finding(split.key, what, f'set data_prefix.img_path or img_suffix of {split.key}')]
    evaluated = not split.evaluators or not all(e.get('format_only') for e in split.evaluators)
    rules = LabelRules(
        classes=split.classes or (),
        ignore_index=dataset.ignore_index,
        reduce_zero_label=bool(dataset.reduce_zero_label),
        label_map=dataset.label_map,
        decoder=split.label_map_decoder,
        obeys_orientation=split.obeys_orientation,
        key=split.key,
    )
    if not evaluated or 'seg_map_path' not in samples[0]:
        return []
    pairs = [(str(Path(s['img_path']).absolute()), str(Path(s['seg_map_path']).absolute())) for s in samples]
    settings = dict(asdict(rules), label_map=sorted((rules.label_map or {}).items()), pairs=pairs, decode=decode)
    if use_cache and (known := cache.recall(settings)) is not None:
        return known
    files = [(path, cache.stamp(path)) for pair in pairs for path in pair]
    findings = check_label_maps(pairs, rules, decode)
    cache.remember(settings, files, findings)
    return findings
