"""Join a recipe or a config of a zoo with a data set, and write the config."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config

from convnext_dense.archs import resolve_arch
from convnext_dense.errors import UserError
from convnext_dense.run.new_config.data import DataFacts, read_facts
from convnext_dense.run.new_config.model import box_changes, class_changes, merged_changes
from convnext_dense.run.new_config.schedule import LEAST_GAIN_MAP, LEAST_GAIN_MIOU, PATIENCE, Schedule, schedule_of
from convnext_dense.run.new_config.zoo import fit_to_data
from convnext_dense.run.options import nested_dicts
from convnext_dense.swap.files import write_config
from convnext_dense.swap.formatting import LINE_WIDTH, as_line
from convnext_dense.swap.swap import SwappedConfig, swap_config
from convnext_dense.weights.sources import check_source

CONFIGS = Path(__file__).resolve().parents[2] / '.mim' / 'configs'
RECIPES = ('mask_rcnn', 'cascade_mask_rcnn', 'faster_rcnn', 'upernet')
NO_WEIGHTS = 'none'
MAX_LINES = 25
# In names of our configs.
LETTERS = dict(tiny='t', small='s', base='b', large='l', xlarge='xl')
SMALL_ARCHS = ('atto', 'femto', 'pico', 'nano')  # without a recipe of their own
SMALL_DROP_PATH = 0.1  # ConvNeXt V2, arXiv 2301.00808, Table 13: fine-tuning of atto to nano

# The test scale of the recipes, and the side of an object that they find well: the smallest anchor of FPN.
RECIPE_SCALE = (1333, 800)
ANCHOR = 32
MULTIPLE = 32
MAX_ENLARGEMENT = 2.0
MIN_SIDE = 160
TRAIN_SCALES = (0.6, 0.7, 0.8, 0.9, 1.0)  # 480 to 800 of 800, as in the recipes
CROP = 512  # of UperNet's recipe


@dataclass(frozen=True)
class Base:
    """What a new config inherits from.

    Attributes:
        config: Its content.
        line: The expression after ``_base_ =``.
        is_ours: Whether it is a recipe of this package; others have been fitted to the data already.
    """

    config: Config
    line: str
    is_ours: bool


def new_config(
    data: Path,
    *,
    recipe: str = 'mask_rcnn',
    arch: str | None = None,
    weights: str | None = None,
    batch_size: int = 2,
    epochs: int | None = None,
    out: Path | None = None,
    dry_run: bool = False,
) -> None:
    """Write a config for a data set, or print it.

    Args:
        data: A folder of our layout, see :func:`convnext_dense.run.new_config.data.read_facts`.
        recipe: One of :data:`RECIPES`, or a config of mmdet or mmseg: a path or ``mmdet::...``.
        arch: Of the backbone; default tiny.
        weights: For the backbone, from every source of ``init_cfg``; 'none' for none. By default those of the recipe.
        batch_size: Images per iteration, over all GPUs.
        epochs: Passes over the training images; by default from their number.
        out: The file to write; by default RECIPE_ARCH.py. A config of a zoo gets a second file beside it,
            OUT_base.py, with our backbone and the data's layout.
        dry_run: Print it instead.

    Raises:
        UserError: The data have another layout or do not go with the model, or a file is in the way.
    """
    facts = read_facts(data)
    arch = (arch or 'tiny').lower()
    resolve_arch(arch)
    if weights and weights != NO_WEIGHTS:
        check_source(weights, 'weights')
    if batch_size < 1:
        raise UserError(f'--batch-size {batch_size}: give at least 1')
    if epochs is not None and epochs < 1:
        raise UserError(f'--epochs {epochs}: give at least 1')
    name = recipe if recipe in RECIPES else Path(recipe.rpartition('/')[2]).stem.replace('-', '_')
    out = out or Path(f'{name}_{arch}.py')
    base_out = out.with_name(f'{out.stem}_base.py')
    swapped = None
    if recipe in RECIPES:
        base = _our_base(recipe, arch, facts)
    else:
        swapped = _swapped_base(recipe, arch, weights, facts)
        base = Base(swapped.after, repr(base_out.name), is_ours=False)
    for path in (out, base_out) if swapped else (out,):
        if path.exists():
            raise UserError(f'{path} exists: nothing was written, give another file with --out')
    lines = list(_lines(facts, base, recipe, arch, weights, batch_size, epochs))
    text = '\n'.join(lines) + '\n'
    if dry_run:
        _load(text, swapped, base_out.name, facts)
        print(text, end='')
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    _load(text, swapped, base_out.name, facts)
    if swapped:
        write_config(swapped.source, swapped.before, swapped.after, base_out)
    out.write_text(text, encoding='utf-8')
    for note in swapped.notes if swapped else ():
        print(f'note: {note}')
    print(f'{out}: train it with `convnext-dense train {out}`')


def default_config(facts: DataFacts) -> Config:
    """Return the config of a small recipe for a data set, without writing it."""
    recipe = 'upernet' if facts.is_segmentation else 'mask_rcnn'
    lines = _lines(facts, _our_base(recipe, 'tiny', facts), recipe, 'tiny', NO_WEIGHTS, batch_size=2)
    return _load('\n'.join(lines), None, '', facts)


def _our_base(recipe: str, arch: str, facts: DataFacts) -> Base:
    """Return our config of a recipe."""
    if facts.is_segmentation != (recipe == 'upernet'):
        labels, wanted = ('label maps', 'upernet') if facts.is_segmentation else ('objects', 'mask_rcnn or faster_rcnn')
        raise UserError(f'{facts.root} holds {labels}, {recipe} does not learn from them: give --recipe {wanted}')
    config = recipe_config(recipe, arch)
    # By its path: tools of mmdet and mmseg, which do not import this package, find it too.
    line = f"__import__('convnext_dense').__path__[0] + '/.mim/configs/{config}'"
    return Base(Config.fromfile(CONFIGS / config), line, is_ours=True)


def recipe_config(recipe: str, arch: str) -> str:
    """Return our config of a recipe for an arch, or for the arch that is next to it: a path below ``configs/``."""
    folder = 'mask_rcnn' if recipe == 'faster_rcnn' else recipe
    nearest = 'tiny' if arch in SMALL_ARCHS else 'xlarge' if arch == 'huge' else arch
    names: list[str] = []
    for letter in (LETTERS[nearest], 's', 't'):
        names = names or [
            path.name for path in (CONFIGS / folder).glob(f'convnext_{letter}_*.py') if '_1x_' not in path.name
        ]
    return f'{folder}/{min(names, key=lambda name: ("in22k" in name, name))}'


def _swapped_base(recipe: str, arch: str, weights: str | None, facts: DataFacts) -> SwappedConfig:
    """Return a config of a zoo with our backbone and recipe, fitted to the data."""
    swapped = swap_config(recipe, arch, None if weights == NO_WEIGHTS else weights, recipe=True)
    is_segmentor = swapped.after.get('default_scope') == 'mmseg'
    if is_segmentor != facts.is_segmentation:
        labels = 'label maps' if facts.is_segmentation else 'objects'
        raise UserError(f'{facts.root} holds {labels}, {recipe} does not learn from them: give another config')
    factor = 1.0 if is_segmentor else _scale(facts)[1] / RECIPE_SCALE[1]
    return SwappedConfig(swapped.source, swapped.before, fit_to_data(swapped.after, facts, factor), swapped.notes)


def _scale(facts: DataFacts) -> tuple[int, int]:
    """Return the test scale (long side, short side): that of the images, enlarged where objects are small."""
    short = min(facts.image_size)
    enlargement = min(max(ANCHOR / (facts.object_side or ANCHOR), 1), MAX_ENLARGEMENT)
    side = min(max(round(short * enlargement / MULTIPLE) * MULTIPLE, MIN_SIDE), RECIPE_SCALE[1])
    return round(side * RECIPE_SCALE[0] / RECIPE_SCALE[1]), side


def _lines(
    facts: DataFacts,
    base: Base,
    recipe: str,
    arch: str,
    weights: str | None,
    batch_size: int,
    epochs: int | None = None,
) -> Iterator[str]:
    cfg = base.config
    rate = cfg.optim_wrapper.optimizer.lr
    schedule = schedule_of(
        facts.num_train,
        batch_size,
        facts.is_segmentation,
        rate,
        cfg.get('auto_scale_lr', {}).get('base_batch_size', 16),
        epochs,
    )
    yield f'# {recipe} with ConvNeXt {arch} on {facts.num_train} images, written by `convnext-dense new-config`.'
    yield f'_base_ = {base.line}'
    yield f'data_root = {str(facts.root) + "/"!r}'
    yield f'metainfo = {as_line(dict(classes=facts.classes, palette=list(facts.palette)))}'
    yield f'num_classes, batch_size = {len(facts.classes)}, {batch_size}'
    model = merged_changes(
        _backbone_changes(base, arch, weights),
        _box_changes(base, recipe, facts),
        class_changes(cfg.model),
        _crop_changes(base, facts),
    )
    yield from _packed('model', model)
    yield from _data_lines(facts, base, recipe)
    yield from _schedule_lines(facts, schedule)
    yield from _hook_lines(facts, base, recipe, schedule, _is_pretrained(base, model))


def _packed(name: str, values: dict[str, Any]) -> Iterator[str]:
    """Yield the assignment of a dict in as few lines as its items allow."""
    line = f'{name} = dict('
    indent = ' ' * len(line)
    for i, (key, value) in enumerate(values.items()):
        item = f'{key}={as_line(value)}' + (')' if i == len(values) - 1 else ',')
        if len(line) + 1 + len(item) > LINE_WIDTH and line.strip():
            yield line.rstrip()
            line = indent
        line += item if line.endswith(('(', ' ')) else f' {item}'
    yield line


def _backbone_changes(base: Base, arch: str, weights: str | None) -> dict[str, Any]:
    """Return the arch and the weights, where those of the recipe are others; the swap has set them in other configs."""
    if not base.is_ours:
        return {}
    model = base.config.model
    changes: dict[str, Any] = {}
    backbone: dict[str, Any] = {}
    if model.backbone.arch != arch:
        _, channels = resolve_arch(arch)
        backbone['arch'] = arch
        if arch in SMALL_ARCHS:
            backbone['drop_path_rate'] = SMALL_DROP_PATH
        if 'neck' in model:
            changes['neck'] = dict(in_channels=list(channels))
        else:
            changes['decode_head'] = dict(in_channels=list(channels))
            changes['auxiliary_head'] = dict(in_channels=channels[2])
    if weights == NO_WEIGHTS or (weights is None and 'arch' in backbone):
        backbone['init_cfg'] = None
    elif weights:
        backbone['init_cfg'] = dict(type='Pretrained', checkpoint=weights)
    return changes | (dict(backbone=backbone) if backbone else {})


def _without_masks(recipe: str, facts: DataFacts) -> bool:
    return not facts.is_segmentation and (not facts.has_masks or recipe == 'faster_rcnn')


def _box_changes(base: Base, recipe: str, facts: DataFacts) -> dict[str, Any]:
    return box_changes(base.config.model) if base.is_ours and _without_masks(recipe, facts) else {}


def _crop(facts: DataFacts) -> int:
    """Return the side of the crops of a segmentor: the recipe's, or the short side of smaller images."""
    return min(max(min(facts.image_size) // MULTIPLE * MULTIPLE, MULTIPLE), CROP)


def _crop_changes(base: Base, facts: DataFacts) -> dict[str, Any]:
    if not (base.is_ours and facts.is_segmentation):
        return {}
    crop = _crop(facts)
    stride = crop * 2 // 3
    return dict(
        data_preprocessor=dict(size=(crop, crop)), test_cfg=dict(crop_size=(crop, crop), stride=(stride, stride))
    )


def _data_lines(facts: DataFacts, base: Base, recipe: str) -> Iterator[str]:
    metric = "'bbox'" if _without_masks(recipe, facts) else "['bbox', 'segm']"
    dataset, evaluator = 'data_root=data_root, metainfo=metainfo', ''
    train, val = dataset, dataset
    if base.is_ours and facts.is_segmentation:
        crop = _crop(facts)
        yield f'crop, scale = ({crop}, {crop}), ({4 * crop}, {crop})  # no larger than most images'
        yield "load, resize = dict(type='LoadAnnotations'), dict(type='Resize', scale=scale, keep_ratio=True)"
        yield (
            'train_pipeline = [_base_.train_pipeline[0], load, dict(_base_.train_pipeline[2], scale=scale), '
            'dict(_base_.train_pipeline[3], crop_size=crop), *_base_.train_pipeline[4:]]'
        )
        yield 'test_pipeline = [_base_.test_pipeline[0], resize, load, _base_.test_pipeline[-1]]'
        dataset += f", type='BaseSegDataset', img_suffix={facts.image_suffix!r}, seg_map_suffix='.png'"
        train, val = f'{dataset}, pipeline=train_pipeline', f'{dataset}, pipeline=test_pipeline'
    elif base.is_ours:
        long, short = _scale(facts)
        sizes = [(long, round(short * share / MULTIPLE) * MULTIPLE) for share in TRAIN_SCALES]
        yield f"scales = {as_line(sorted(set(sizes)))}  # the images' own size, enlarged where objects are small"
        load = f"dict(type='LoadAnnotations', with_bbox=True, with_mask={not _without_masks(recipe, facts)})"
        yield (f"load, resize = {load}, dict(type='Resize', scale=scales[-1], keep_ratio=True)")
        yield (
            "train_pipeline = [_base_.train_pipeline[0], load, dict(type='RandomFlip', prob=0.5), "
            "dict(type='RandomChoiceResize', scales=scales, keep_ratio=True), _base_.train_pipeline[-1]]"
        )
        yield 'test_pipeline = [_base_.test_pipeline[0], resize, load, _base_.test_pipeline[-1]]'
        train, val = f'{dataset}, pipeline=train_pipeline', f'{dataset}, pipeline=test_pipeline'
    if not facts.is_segmentation:
        evaluator = f"dict(ann_file=data_root + 'annotations/instances_val2017.json', metric={metric})"
    mixed = base.config.train_dataloader.dataset.type == 'MultiImageMixDataset'
    train = f'dataset=dict({train})' if mixed else train
    yield f'train_dataloader = dict(batch_size=batch_size, dataset=dict({train}))'
    yield f'val_dataloader = test_dataloader = dict(dataset=dict({val}))'
    if evaluator:
        yield f'val_evaluator = test_evaluator = {evaluator}'


def _schedule_lines(facts: DataFacts, schedule: Schedule) -> Iterator[str]:
    yield f'# {schedule.epochs} epochs: {schedule.source}. The rate is in proportion to the batch.'
    warmup = f"dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end={schedule.warmup})"
    if facts.is_segmentation:
        end = schedule.iterations
        yield (
            f"train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters={end}, "
            f'val_interval={schedule.val_interval})'
        )
        decay = f"dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=0, end={end})"
    else:
        yield (
            f"train_cfg = dict(_delete_=True, type='EpochBasedTrainLoop', max_epochs={schedule.epochs}, "
            f'val_interval={schedule.val_interval})'
        )
        decay = (
            f"dict(type='MultiStepLR', by_epoch=True, begin=0, end={schedule.epochs}, "
            f'milestones={list(schedule.milestones)}, gamma=0.1)'
        )
    yield f'param_scheduler = [{warmup},'
    yield f'                   {decay}]'
    yield f'optim_wrapper = dict(optimizer=dict(lr={schedule.learning_rate:g}))'
    yield 'auto_scale_lr = dict(base_batch_size=batch_size)  # for --auto-scale-lr on several GPUs'


def _is_pretrained(base: Base, changes: dict[str, Any]) -> bool:
    """Return whether the backbone begins with weights, after the changes of the model."""
    backbone = next(part for part in nested_dicts(base.config.model) if part.get('type') == 'ConvNeXt')
    return (dict(backbone) | changes.get('backbone', {})).get('init_cfg') is not None


def _hook_lines(facts: DataFacts, base: Base, recipe: str, schedule: Schedule, is_pretrained: bool) -> Iterator[str]:
    best = 'mIoU' if facts.is_segmentation else 'coco/bbox_mAP' if _without_masks(recipe, facts) else 'coco/segm_mAP'
    least_gain = LEAST_GAIN_MIOU if facts.is_segmentation else LEAST_GAIN_MAP
    by_epoch = not facts.is_segmentation
    if base.config.get('log_processor', {}).get('by_epoch', True) != by_epoch:
        yield f'log_processor = dict(by_epoch={by_epoch})'
    yield (
        f'default_hooks = dict(checkpoint=dict(by_epoch={by_epoch}, interval={schedule.val_interval}, '
        f"max_keep_ckpts=2, save_best={best!r}, rule='greater'))  # the last one is seldom the best"
    )
    inherited = '*_base_.custom_hooks, ' if base.config.get('custom_hooks') else ''
    if is_pretrained:
        yield (
            f"custom_hooks = [{inherited}dict(type='EarlyStoppingHook', monitor={best!r}, rule='greater', "
            f'min_delta={least_gain}, patience={PATIENCE}),  # ends what no longer improves'
        )
    else:
        # A detector then finds nothing in the first validations, for which the hook would end the training.
        yield f'custom_hooks = [{inherited} # no early stopping: from random weights, a metric rises late'
    window = round(1 / schedule.momentum)
    yield (
        f"                dict(type='EMAHook', momentum={schedule.momentum:g})]  # val and files take the weights' "
        f'average over about {window} iterations'
    )


def _load(text: str, swapped: SwappedConfig | None, base_name: str, facts: DataFacts) -> Config:
    """Read the config in a folder of its own, and prove that it holds the classes and names existing data.

    Raises:
        UserError: Nothing can inherit from the config of the zoo.
    """
    with tempfile.TemporaryDirectory() as folder:
        if swapped:
            write_config(swapped.source, swapped.before, swapped.after, Path(folder) / base_name)
        file = Path(folder) / 'new_config.py'
        file.write_text(text, encoding='utf-8')
        cfg = Config.fromfile(file)
    dataset = cfg.train_dataloader.dataset
    dataset = dataset.dataset if 'dataset' in dataset else dataset
    if tuple(dataset.metainfo.classes) != facts.classes or Path(dataset.data_root) != facts.root:
        raise UserError(f'{base_name} cannot be inherited from: its data set is not reached by the new config')
    return cfg
