"""Put ConvNeXt under an existing mmdet or mmseg pipeline.

The old backbone is built and run, which says what the rest of the model receives: channels and strides. Necks and heads
are run on such features too, and their gradients say which of them they use. ConvNeXt's stages then take the places of
the features with the same strides, every number of channels that was the old one's becomes ours, and what comes out is
built and run once more: a neck or head that would receive other strides than before is an error, never a config.
"""

from __future__ import annotations

import copy
import importlib
import keyword
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

from convnext_dense.archs import ARCHS, NUM_STAGES, resolve_arch
from convnext_dense.errors import UserError
from convnext_dense.models.convnext import ConvNeXt
from convnext_dense.toolkits import check_toolkit

MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]  # of ImageNet, RGB

DIVISOR = 32  # of ConvNeXt's last stage

ROI_SIZE = 14

DEVICES = ('meta', 'cpu')  # on the first one nothing is computed, but not everything runs there

SIZE, LARGER_SIZE = 128, 512  # of the images that modules are run on

LINE, FLAT, CELL = 120, -(10**6), 60  # width of a config, of one line at any length, of a cell in the table

SEGMENTATION_HEADS = ('decode_head', 'auxiliary_head')

NO_CONSUMERS = ('data_preprocessor', 'train_cfg', 'test_cfg', 'init_cfg', 'language_model', 'pretrained')

CLASSIFIERS = ('mmpretrain', 'mmcls')

CONVNEXTS = ('mmpretrain.ConvNeXt', 'mmcls.ConvNeXt')

# What --recipe sets, for each arch: rate of layer decay and drop path of the Cascade Mask R-CNN recipes, drop path of
# the UperNet recipes. Other archs as tiny.
RECIPES = {
    'tiny': (0.7, 0.4, 0.4),
    'small': (0.7, 0.6, 0.3),
    'base': (0.8, 0.7, 0.4),
    'large': (0.7, 0.7, 0.4),
    'xlarge': (0.7, 0.8, 0.4),
}

RECIPE_LR, RECIPE_BATCH, STAGE_WISE_RATE = 1e-4, 16, 0.9


@dataclass(frozen=True)
class Feature:
    """One feature of a backbone or neck.

    Attributes:
        shape: (N, C, H, W), or (N, C) where it is pooled.
        stride: In pixels of the image; None where it is pooled or no whole number.
    """

    shape: tuple[int, ...]
    stride: int | None

    @property
    def channels(self) -> int:
        return self.shape[1]


def swap_backbone(
    cfg: Config | str | Path, arch: str | dict | None = None, weights: str | None = None, recipe: bool = False
) -> Config:
    """A copy of a config in which every backbone is a ConvNeXt.

    Args:
        cfg: A config of mmdet, mmseg or another toolkit on mmengine, its path, or ``'mmdet::...'``.
        arch: Of our ConvNeXt; None is ``'tiny'``, or the arch of a ConvNeXt that is there already.
        weights: For the backbone, from every source of ``init_cfg`` (README, "Weights").
        recipe: Also set AdamW, layer decay, drop path and mixed precision as the official recipes do.

    Returns:
        A new config; the one given is left as it is.

    Raises:
        UserError: This model cannot have another backbone; says why.
    """
    return Swap(cfg, arch, weights, recipe).cfg


class Swap:
    """A swap that was done.

    Attributes:
        before, cfg: The config, without and with our backbone.
        notes: What a reader of the changes should know.
    """

    def __init__(
        self, cfg: Config | str | Path, arch: str | dict | None = None, weights: str | None = None, recipe: bool = False
    ) -> None:
        self.source = cfg if isinstance(cfg, (str, Path)) else cfg.filename
        self.before = cfg if isinstance(cfg, Config) else read(cfg)
        self.cfg = copy.deepcopy(self.before)
        self.arch, self.weights, self.recipe = arch, weights, recipe
        self.notes: list[str] = []
        if arch is not None:
            resolve_arch(arch)
        if 'model' not in self.cfg:
            raise UserError(f'{self.source} holds no model: give a config that trains one')
        if not isinstance(self.cfg.model, dict) or not isinstance(self.cfg.model.get('type'), str):
            raise UserError(
                f'{self.source} is a new-style config, whose types are Python objects: give one with '
                "types as text (Config.fromfile(...).dump('flat.py') writes it so)"
            )
        scope = self.cfg.get('default_scope') or 'mmengine'
        _import_models(scope, self.cfg)
        with DefaultScope.overwrite_default_scope(scope):
            self._swap(scope)

    def _swap(self, scope: str) -> None:
        sites = list(_backbones(self.cfg.model))
        if not sites:
            raise UserError(f'the model {self.cfg.model.type} has no backbone= that could be exchanged')
        for path, _, _ in sites:
            if any(part.endswith('neck') for part in path):
                raise UserError(
                    f'{".".join(path)} sits inside a neck, which feeds it a second input: ConvNeXt takes an image alone'
                )
        self.swapped = [_Site(self, '.'.join(path), owner, key).swap(scope) for path, owner, key in sites]
        self._preprocessing()
        self._old_weights()
        self._imports()
        model = self._build()
        self._optimizer(model)

    def _preprocessing(self) -> None:
        """RGB with ImageNet's mean and std, as ConvNeXt's weights were trained with; sides divisible by 32."""
        preprocessors = [self.cfg.data_preprocessor] if isinstance(self.cfg.get('data_preprocessor'), dict) else []
        preprocessors += [value for key, value in _items(self.cfg.model) if key == 'data_preprocessor' and value]
        for cfg in preprocessors:
            if 'data_preprocessor' in cfg:  # a wrapper around another one
                continue
            old_mean = cfg.get('mean')
            swap_channels = 'to_rgb' if 'to_rgb' in cfg else 'bgr_to_rgb'
            if old_mean is not None and len(old_mean) != 3:
                self.notes.append(
                    f'the mean of {len(old_mean)} channels in data_preprocessor stays: ConvNeXt was trained with RGB'
                )
                continue
            cfg.update({'mean': list(MEAN), 'std': list(STD), swap_channels: True})
            cfg.pop('rgb_to_bgr', None)
            if 'Seg' not in cfg.get('type', '') and 'ReID' not in cfg.get('type', ''):
                divisor = cfg.get('pad_size_divisor', 1)
                if divisor % DIVISOR:
                    cfg.pad_size_divisor = DIVISOR if DIVISOR % divisor == 0 else divisor * DIVISOR
            if old_mean is not None and list(old_mean) != MEAN:
                for part in (value for _, value in _items(self.cfg._cfg_dict) if isinstance(value, dict)):
                    # steps that fill with the mean of the raw image
                    if 'to_rgb' in part and 'mean' in part and sorted(part['mean']) == sorted(old_mean):
                        part.update(mean=list(MEAN), to_rgb=True, **({'std': list(STD)} if 'std' in part else {}))

    def _old_weights(self) -> None:
        if all(site.same_arch for site in self.swapped):  # they fit
            return
        if self.cfg.get('load_from'):
            self.notes.append(f'load_from={self.cfg.load_from} was of the old model: removed')
            self.cfg.load_from = None
        places = [
            (name, part)
            for name, part in _dicts(self.cfg.model)
            if not any(name == site.place or name.startswith(f'{site.place}.') for site in self.swapped)
        ]
        for name, part in places:
            # Weights of the whole model around a backbone, or of the backbone alone.
            if any(site.place.startswith(f'{name}.' if name else '') for site in self.swapped):
                if part.get('pretrained'):
                    part.pretrained = None
                if _is_pretrained(part.get('init_cfg')):
                    self.notes.append(
                        f'{".".join(filter(None, ("model", name, "init_cfg")))} loads weights of the old model: removed'
                    )
                    part.init_cfg = None
            if part.get('teacher_ckpt') and 'teacher_backbone' in part:
                self.notes.append(
                    'teacher_ckpt was of the old teacher: removed; give one with ConvNeXt, or this '
                    'trains with a random teacher'
                )
                part.teacher_ckpt = None
        if not self.weights and not any(site.keeps_weights for site in self.swapped):
            self.notes.append(
                'no weights were given: the backbone starts at random; --weights convnext_tiny_1k_224 '
                '(a name, path or URL) or model.backbone.init_cfg change that'
            )

    def _imports(self) -> None:
        imports = [
            name
            for name in _custom_imports(self.cfg)
            if name.split('.')[0] not in CLASSIFIERS or _types_of(self.cfg._cfg_dict, name.split('.')[0])
        ]
        if 'convnext_dense' not in imports:
            imports.append('convnext_dense')
        old = self.cfg.get('custom_imports') or {}
        self.cfg.custom_imports = dict(imports=imports, allow_failed_imports=old.get('allow_failed_imports', False))

    def _build(self) -> nn.Module | None:
        """The whole model, whose parameters an optimizer would get; None where the environment lacks parts of it."""
        if 'language_model' in self.cfg.model:
            self.notes.append(
                'the language model, which comes from a hub, was not built: backbone, neck and channels were checked'
            )
            return None
        try:
            return build(self.cfg.model)
        except Exception as error:
            try:
                build(self.before.model)
            except Exception as old_error:
                self.notes.append(
                    'the whole model could not be built here, neither before nor after '
                    f'({_short(old_error)}): backbone, neck and channels were checked'
                )
                return None
            raise UserError(f'{self.cfg.model.type} cannot be built around a ConvNeXt: {_short(error)}') from error

    def _optimizer(self, model: nn.Module | None) -> None:
        if not isinstance(self.cfg.get('optim_wrapper'), dict):
            if self.recipe:
                raise UserError('the config has no optim_wrapper, which --recipe would change: leave out --recipe')
            return
        wrapper = self.cfg.optim_wrapper
        names = [name for name, _ in model.named_parameters()] if model is not None else None
        paramwise = wrapper.get('paramwise_cfg') or {}
        if 'decay_type' in paramwise or 'num_layers' in paramwise or 'layer_decay_rate' in paramwise:
            if wrapper.get('constructor') == 'ConvNeXtLayerDecayConstructor':
                pass
            elif all(site.was_convnext for site in self.swapped) and 'decay_rate' in paramwise:
                wrapper.constructor = 'ConvNeXtLayerDecayConstructor'
                wrapper.paramwise_cfg = {key: value for key, value in paramwise.items() if key != 'num_layers'}
            else:
                self.notes.append(
                    f'{wrapper.get("constructor")} counted layers of the old backbone: removed; '
                    '--recipe sets layer decay for ConvNeXt'
                )
                wrapper.pop('constructor', None)
                wrapper.pop('paramwise_cfg', None)
        if 'custom_keys' in (wrapper.get('paramwise_cfg') or {}):
            old_names = [name for site in self.swapped for name in site.old_parameters]
            new_names = names or [name for site in self.swapped for name in site.new_parameters]
            gone = [
                key
                for key in wrapper.paramwise_cfg.custom_keys
                if not any(key in name for name in new_names)
                and (names is not None or any(key in name for name in old_names))
            ]
            for key in gone:
                del wrapper.paramwise_cfg.custom_keys[key]
        if self.recipe:
            self._set_recipe(wrapper, names)

    def _set_recipe(self, wrapper: ConfigDict, names: list[str] | None) -> None:
        arch = next((name for site in self.swapped for name in ARCHS if name == site.arch), 'tiny')
        rate, _, _ = RECIPES.get(arch, RECIPES['tiny'])
        batch = (self.cfg.get('auto_scale_lr') or {}).get('base_batch_size', RECIPE_BATCH)
        lr = RECIPE_LR * batch / RECIPE_BATCH
        old_lr = (wrapper.get('optimizer') or {}).get('lr')
        custom_keys = {
            key: value
            for key, value in (wrapper.get('paramwise_cfg') or {}).get('custom_keys', {}).items()
            if names
            and any(key in name for name in names)
            and not any(key in name and name.startswith(site.place) for name in names for site in self.swapped)
        }
        wrapper.constructor = 'ConvNeXtLayerDecayConstructor'
        wrapper.paramwise_cfg = (
            dict(decay_type='stage_wise', decay_rate=STAGE_WISE_RATE)
            if self.is_segmentor
            else dict(decay_type='layer_wise', decay_rate=rate)
        )
        if custom_keys:
            wrapper.paramwise_cfg.custom_keys = custom_keys
        wrapper.optimizer = dict(type='AdamW', lr=lr, betas=(0.9, 0.999), weight_decay=0.05)
        wrapper.type, wrapper.loss_scale = 'AmpOptimWrapper', 'dynamic'
        # An absolute last rate such as 1e-4 of SGD would be the whole rate of AdamW.
        schedulers = self.cfg.get('param_scheduler')
        for scheduler in schedulers if isinstance(schedulers, list) else [schedulers] if schedulers else []:
            if scheduler.get('eta_min') and old_lr:
                scheduler.eta_min = scheduler.eta_min * lr / old_lr
        self.notes.append(
            f'learning rate {lr:g} for {batch} images an iteration: scale it to yours with --auto-scale-lr'
            if 'base_batch_size' in (self.cfg.get('auto_scale_lr') or {})
            else f'learning rate {lr:g} for {batch} images an iteration: scale it to yours'
        )

    def write(self, out: str | Path) -> None:
        """Write a config that inherits from the one before and holds the difference; it works in any folder.

        Raises:
            UserError: It would not be the config that was swapped.
        """
        out = Path(out)
        if not self.source:
            raise UserError('this config was not read from a file, so none can inherit from it: use Config.dump')
        base = base_of(self.source)
        if out.resolve() == Path(base):
            raise UserError(f'{out} is the config to swap: give another file to write')
        parts = [f'# {Path(base).name} with ConvNeXt, made by tools/swap_backbone.py', f'_base_ = {base!r}']
        changed = difference(self.before.to_dict(), self.cfg.to_dict())
        parts += [
            f'{key} = {_as_code(changed[key], len(key) + 3)}'
            for key in sorted(changed, key=lambda key: key != 'custom_imports')
        ]
        draft = out.with_name(f'{out.stem}_draft.py')
        draft.write_text('\n'.join(parts) + '\n')
        try:
            if Config.fromfile(draft, import_custom_modules=False).to_dict() != self.cfg.to_dict():
                raise UserError(
                    f'{base} cannot be inherited from with these changes: use swap_backbone in Python and Config.dump'
                )
            draft.replace(out)
        finally:
            draft.unlink(missing_ok=True)

    def changes(self) -> str:
        """What the swap changed, a line each, and the notes."""
        rows = [('', 'before', 'after'), *_changed(self.before.to_dict(), self.cfg.to_dict())]
        widths = [max(len(row[column]) for row in rows) for column in range(2)]
        lines = [f'{path:<{widths[0]}}  {before:<{widths[1]}}  {after}'.rstrip() for path, before, after in rows]
        return '\n'.join(lines + [f'note: {note}' for note in self.notes])

    @property
    def is_segmentor(self) -> bool:
        return 'decode_head' in self.cfg.model

    @property
    def drop_path_rate(self) -> float:
        arch = self.arch if isinstance(self.arch, str) else 'tiny'
        _, detector, segmentor = RECIPES.get(arch, RECIPES['tiny'])
        return segmentor if self.is_segmentor else detector


class _Site:
    """One backbone, at ``owner[key]``, and its consumers, which stand beside it."""

    def __init__(self, swap: Swap, place: str, owner: ConfigDict, key: str) -> None:
        self.all, self.place, self.owner, self.key = swap, place, owner, key
        self.prefix = key[: -len('backbone')]
        self.old = owner[key]

    def swap(self, scope: str) -> _Site:
        theirs = self.old.type in CONVNEXTS or (scope in CLASSIFIERS and self.old.type == 'ConvNeXt')
        self.was_convnext = theirs or MODELS.get(self.old.type) is ConvNeXt
        known = {key: value for key, value in self.old.items() if key not in ('type', '_scope_')}
        # Without mmpretrain too: our class knows the arguments of theirs.
        readable = ConfigDict(known, type='mmengine.ConvNeXt') if theirs else self.old
        features, size, names = _features_of(readable)
        neck = self.owner.get(f'{self.prefix}neck')
        if neck and not _try_run(neck, features):  # some need larger features, such as SSD's
            larger, larger_size, _ = _features_of(readable, [LARGER_SIZE])
            if _try_run(neck, larger):
                features, size = larger, larger_size
            else:
                self.all.notes.append(
                    f'{_type_of(neck)} could not be run here: its channels were rewritten by value and not checked'
                )
        self.old_parameters = [f'{self.place}.{name}' for name in names]
        self.same_arch = self.was_convnext and (
            self.all.arch is None or resolve_arch(self.all.arch) == resolve_arch(known.get('arch', 'tiny'))
        )
        self.arch = known.get('arch', 'tiny') if self.same_arch else self.all.arch or 'tiny'
        new = dict(type='mmengine.ConvNeXt' if scope in CLASSIFIERS else 'ConvNeXt', arch=self.arch)
        if self.was_convnext:
            others = ('arch', 'init_cfg', 'pretrained', 'gap_before_final_norm')
            new.update({key: value for key, value in known.items() if key not in others})
        else:
            new.update(layer_scale_init_value=1.0)
            channels_in = self.old.get('in_channels', 3)
            if isinstance(channels_in, int) and channels_in not in (0, 3):
                new.update(in_channels=channels_in)
        if self.all.recipe:
            new.update(
                drop_path_rate=self.all.drop_path_rate, layer_scale_init_value=0.0 if new.get('use_grn') else 1.0
            )
        self.keeps_weights = self.same_arch and _is_pretrained(known.get('init_cfg'))
        if self.all.weights:
            new.update(init_cfg=dict(type='Pretrained', checkpoint=self.all.weights))
        elif self.keeps_weights:
            new.update(init_cfg=known['init_cfg'])
        self._place(new, features, size)
        return self

    def _place(self, new: dict, old: list[Feature], size: int) -> None:
        """Put the backbone ``new`` where it gives what ``old`` gave, and tell its consumers."""
        neck_key = f'{self.prefix}neck'
        neck = self.owner.get(neck_key) or None
        heads = self._heads()
        shared_head = None if neck else next((head for _, head in heads if head.get('shared_head')), None)
        last = NUM_STAGES - 2 if shared_head else NUM_STAGES - 1
        at_neck = _try_run(neck, old) if neck else None
        at_heads = (at_neck.outputs if at_neck else None) if neck else old
        taken, in_use = self._taken_by_heads(heads, at_heads) if at_heads else ({}, set())
        all_taken = sorted({i for indices in taken.values() for i in indices})

        if neck:
            everything = list(range(len(old)))
            used = at_neck.used if at_neck else everything
            if used != everything[used[0] :]:  # all that the neck leaves out must be at its start
                used = everything
            if (
                not _plan(old, used, last)
                and all_taken
                and len({old[i].stride for i in used}) == 1
                and _plan(at_heads, all_taken, last)
            ):
                self.all.notes.append(
                    f'{_type_of(neck)} made a pyramid of features that all had one stride; ConvNeXt '
                    'is a pyramid: removed'
                )
                self.owner[neck_key] = neck = None
                old = at_heads
        if not neck:
            used = all_taken
            # A head with one number of channels for several features needs them equal.
            equal = len(used) > 1 and any(
                name not in SEGMENTATION_HEADS and isinstance(head.get('in_channels'), int) for name, head in heads
            )
            adapter, ours = self._fit_backbone(new, old, used, last, size, may_fit=not equal)
            position = {i: number for number, i in enumerate(used)}
        else:
            for choice in [used, everything] if used != everything else [everything]:
                used = choice
                new_neck = copy.deepcopy(neck)
                adapter, ours = self._fit_backbone(new, old, used, last, size)
                try:
                    if not adapter:
                        first = new_neck[0] if isinstance(neck, (list, tuple)) else new_neck
                        _rewrite_neck(first, old, ours, len(old) - len(used))
                    if at_neck:
                        ours = self._check_neck(new_neck, at_neck, [old[i].stride for i in at_neck.used], ours)
                    break
                except UserError:  # some necks cannot do without the features that they do not use
                    if used == everything:
                        raise
            in_use = set(at_neck.used) if at_neck else set(used)
            behind = list(new_neck) if isinstance(new_neck, (list, tuple)) else [new_neck]
            self.owner[neck_key] = [adapter, *behind] if adapter else new_neck
        if not adapter and not in_use >= set(used):
            self.all.cfg.find_unused_parameters = True
            self.all.notes.append(
                f'features of {self.place} are taken but not used, as before: '
                'find_unused_parameters=True, or several GPUs would stop at their norms'
            )

        if neck and at_neck:
            old, position = at_heads, {i: i for i in range(len(at_heads))}
        if not neck or at_neck:
            for name, head in heads:
                _rewrite_head(name, head, old, ours, position)
            now, _ = self._taken_by_heads(heads, ours)
            for key, indices in taken.items():
                before, after = [old[i].stride for i in indices], [ours[i].stride for i in now[key]]
                if before != after:
                    raise UserError(f'{key[0]} took features at strides {before}, now it takes {after}')
        if shared_head:
            self._swap_shared_head(shared_head, old[used[-1]], new)
        if adapter and not neck:
            self.owner[neck_key] = adapter

    def _fit_backbone(
        self, new: dict, old: list[Feature], used: list[int], last: int, size: int, may_fit: bool = True
    ) -> tuple[ConfigDict | None, list[Feature]]:
        """Set the outputs of ``new`` to the strides of ``old`` in ``used``; an adapter where its stages have others."""
        adapter = None
        plan = _plan(old, used, last) if may_fit else None
        if not plan:
            plan, adapter = self._adapter(old, used)
        stages, output_stride = plan
        for key in ('out_indices', 'output_stride'):
            new.pop(key, None)
        if stages != tuple(range(NUM_STAGES)):
            new['out_indices'] = stages
        if output_stride != 32:
            new['output_stride'] = output_stride
        self.owner[self.key] = ConfigDict(new)
        ours, _, names = _features_of(self.owner[self.key], [size])
        self.new_parameters = [f'{self.place}.{name}' for name in names]
        if adapter:
            ours = _run(adapter, ours).outputs
        before, after = [old[i].stride for i in used], [feature.stride for feature in ours]
        if before != after:
            raise UserError(
                f'{self.place} gave features at strides {before} for an image of {size}x{size}, ConvNeXt '
                f'would give {after}'
            )
        return adapter, ours

    def _heads(self) -> list[tuple[str, ConfigDict]]:
        """What stands beside the backbone and may take its features, by name; those in a list one by one."""
        heads = []
        for name, value in self.owner.items():
            if (
                name in NO_CONSUMERS
                or name.endswith(('backbone', 'neck'))
                or not name.startswith(self.prefix)
                or (not self.prefix and name.startswith('teacher_'))
            ):
                continue
            heads += [
                (name, part)
                for part in (value if isinstance(value, (list, tuple)) else [value])
                if isinstance(part, dict)
            ]
        return heads

    def _taken_by_heads(
        self, heads: Sequence[tuple[str, ConfigDict]], features: Sequence[Feature]
    ) -> tuple[dict[tuple[str, int], list[int]], set[int]]:
        """The features that each head takes, and those that any of them uses."""
        taken, used = {}, set()
        previous = None
        for number, (name, head) in enumerate(heads):
            indices, ran = list(range(len(features))), None
            if name in SEGMENTATION_HEADS:
                # A second head in a list takes the output of the first as well.
                cascaded = name == 'decode_head' and isinstance(self.owner[name], (list, tuple)) and number > 0
                ran = _try_run(head, features, previous) if not cascaded or previous else None
                if name == 'decode_head':
                    previous = ran.outputs[0] if ran else None
                named = [part['in_index'] for _, part in _dicts(head) if 'in_index' in part]
                named = {
                    i % len(features) for item in named for i in (item if isinstance(item, (list, tuple)) else [item])
                }
                if ran:
                    indices = sorted({*ran.used, *named})
                elif named or isinstance(head.get('in_channels'), int):
                    indices = sorted(named or {len(features) - 1})
            taken[name, number] = indices
            used.update(ran.used if ran else indices)
        return taken, used

    def _adapter(self, old: list[Feature], used: list[int]) -> tuple[tuple[tuple[int, ...], int], ConfigDict]:
        strides = [old[i].stride for i in used]
        if any(stride not in (1, 2, 4, 8, 16, 32) for stride in strides):
            raise UserError(
                f'the old backbone {self.old.type} gives features of {[old[i].shape for i in used]}, at '
                f'strides {strides}: from ConvNeXt strides 1, 2, 4, 8, 16 and 32 can be had'
            )
        stages = tuple(i for i in range(NUM_STAGES) if 4 * 2**i >= min(strides))
        channels = resolve_arch(self.arch)[1]
        self.all.notes.append(
            f'{self.place} gave features at strides {strides}, which are no stages of ConvNeXt: '
            'a PyramidAdapter makes them'
        )
        return (stages, 32), ConfigDict(
            type='PyramidAdapter',
            in_channels=[channels[i] for i in stages],
            in_strides=[4 * 2**i for i in stages],
            out_channels=[old[i].channels for i in used],
            strides=strides,
        )

    def _check_neck(self, neck: Any, before: Ran, strides: list, ours: list[Feature]) -> list[Feature]:
        """What the neck gives now; raises where it does not run, or works at other strides than before."""
        try:
            now = _run(neck, ours)
        except Exception as error:
            raise UserError(f'{_type_of(neck)} does not take the features of ConvNeXt: {_short(error)}') from error
        if [ours[i].stride for i in now.used] != strides:
            raise UserError(
                f'{_type_of(neck)} took features at strides {strides}, now it takes '
                f'{[ours[i].stride for i in now.used]}'
            )
        if [feature.stride for feature in now.outputs] != [feature.stride for feature in before.outputs]:
            raise UserError(
                f'{_type_of(neck)} gave features of {[feature.shape for feature in before.outputs]}, now '
                f'of {[feature.shape for feature in now.outputs]}'
            )
        return now.outputs

    def _swap_shared_head(self, head: ConfigDict, feature: Feature, backbone: dict) -> None:
        """The last stage of ConvNeXt in the place of the last stage of a C4 ResNet."""
        regions = Feature((2, feature.channels, ROI_SIZE, ROI_SIZE), feature.stride)
        try:
            before = _run(head.shared_head, [regions], alone=True).outputs[0].channels
        except Exception as error:
            raise UserError(
                f'shared_head {head.shared_head.type} does not run on the features of the old backbone: {_short(error)}'
            ) from error
        keys = ('arch', 'drop_path_rate', 'layer_scale_init_value', 'use_grn', 'init_cfg')
        head.shared_head = dict(type='ConvNeXtSharedHead', **{key: backbone[key] for key in keys if key in backbone})
        for _, part in _dicts(head):
            if part.get('in_channels') == before:
                part.in_channels = resolve_arch(self.arch)[1][-1]


@dataclass(frozen=True)
class Ran:
    """What a module did with some features: the indices of those it used, and its outputs."""

    used: list[int]
    outputs: list[Feature]


def _plan(features: Sequence[Feature], used: Sequence[int], last: int) -> tuple[tuple[int, ...], int] | None:
    """(stages, output_stride) with the strides of these features, the last by stage ``last``; None: there are none.

    The whole network is used: features at stride 8 come out of a dilated last stage, not out of the second one.
    """
    for output_stride in (32, 16, 8):
        of_stages = [min(4 * 2**i, output_stride) for i in range(NUM_STAGES)]
        stages, stage = [], last + 1
        for i in reversed(used):
            stage = next((n for n in range(stage - 1, -1, -1) if of_stages[n] == features[i].stride), -1)
            stages.insert(0, stage)
        if stages[-1] == last and stages[0] >= 0:
            return tuple(stages), output_stride if last == NUM_STAGES - 1 else 32
    return None


def _rewrite_neck(neck: ConfigDict, old: list[Feature], ours: list[Feature], left_out: int) -> None:
    """Channels and levels of the first neck; ``left_out`` features at the start are gone."""
    before, now = [feature.channels for feature in old], [feature.channels for feature in ours]
    for key in ('in_channels', 'in_channel'):
        value = neck.get(key)
        if isinstance(value, (list, tuple)):
            if list(value) == before:
                new = now
            elif list(value) == before[::-1]:
                new = now[::-1]
            else:
                raise UserError(f'{neck.type} has {key}={list(value)}, the old backbone gives {before}: correct it')
            out = neck.get('out_channels')
            if isinstance(out, (list, tuple)) and list(out[: len(value)]) == list(value):  # they come out as they are
                neck.out_channels = type(out)([*new, *out[len(value) :]])
            neck[key] = type(value)(new)
        elif isinstance(value, int) and value in before:
            neck[key] = now[before.index(value) - left_out]
    if left_out:
        for key in ('start_level', 'end_level'):
            if neck.get(key, -1) >= left_out:
                neck[key] -= left_out


def _rewrite_head(
    name: str, head: ConfigDict, old: list[Feature], ours: list[Feature], position: Mapping[int, int]
) -> None:
    """Channels and indices of one head; ``position``: where a feature of before is now."""
    before = [feature.channels for feature in old]
    regions = {
        part.out_channels: ours[position[before.index(part.out_channels)]].channels
        for _, part in _dicts(head)
        if 'featmap_strides' in part
        and part.get('out_channels') in before
        and before.index(part.out_channels) in position
    }
    if regions and not head.get('shared_head'):
        for _, part in _dicts(head):  # what takes the regions
            if part.get('in_channels') in regions:
                part.in_channels = regions[part.in_channels]
    for _, part in _dicts(head):
        if 'in_index' in part or (
            part is head and name in SEGMENTATION_HEADS and isinstance(part.get('in_channels'), int)
        ):
            _rewrite_segmentation_head(part, before, ours, position)
        elif part is head or 'featmap_strides' in part:
            key = 'out_channels' if 'featmap_strides' in part else 'in_channels'
            value = part.get(key)
            if isinstance(value, (list, tuple)) and list(value) == [before[i] for i in position]:
                part[key] = type(value)(ours[i].channels for i in position.values())
            elif isinstance(value, int) and value in before and before.index(value) in position:
                part[key] = ours[position[before.index(value)]].channels


def _rewrite_segmentation_head(
    head: ConfigDict, before: list[int], ours: list[Feature], position: Mapping[int, int]
) -> None:
    index, channels = head.get('in_index', -1), head.get('in_channels')
    indices = [i % len(before) for i in (index if isinstance(index, (list, tuple)) else [index])]
    moved = [position[i] for i in indices]
    if isinstance(index, (list, tuple)):
        head.in_index = type(index)(moved)
    elif index >= 0 or moved[0] != len(ours) - 1:
        head.in_index = moved[0]
    old = [before[i] for i in indices]
    new = [ours[i].channels for i in moved]
    if isinstance(channels, (list, tuple)) and list(channels) == old:
        head.in_channels = type(channels)(new)
    elif isinstance(channels, int) and [channels] == old:
        head.in_channels = new[0]
    else:
        return
    width = head.get('channels')
    if width is not None and width == sum(old) and (len(old) > 1 or head.get('num_convs') == 0):
        head.channels = sum(new)  # as wide as all that comes in
    # The fine features of DeepLabV3+ are always the first.
    if head.get('c1_in_channels') and head.c1_in_channels == before[0] and 0 in position:
        head.c1_in_channels = ours[position[0]].channels


def _features_of(cfg: ConfigDict, sizes: Sequence[int] = (SIZE,)) -> tuple[list[Feature], int, list[str]]:
    """What a backbone gives for two images, their size, and its parameters; raises where ConvNeXt has not the like."""
    channels = cfg.get('in_channels', 3)
    channels = channels if isinstance(channels, int) and channels > 0 else 3

    def outputs(device: str, size: int) -> tuple[dict[bool, Any], list[str]]:
        module = build(cfg, device)
        found = {}
        for mode in (True, False):
            module.train(mode)  # which returns nothing in mmdet's ResNet
            with torch.no_grad():
                found[mode] = module(torch.rand(2, channels, size, size))
        return found, [name for name, _ in module.named_parameters()]

    own = cfg.get('img_size') or ()
    sizes = list(dict.fromkeys([*sizes, *([own] if isinstance(own, int) else own)]))
    for size, device in [(size, device) for device in DEVICES for size in sizes]:
        try:
            with torch.device(device):
                found, names = outputs(device, size)
            break
        except UserError:
            raise
        except Exception as caught:
            error = caught
    else:
        raise UserError(
            f'the backbone {cfg.type} cannot be built here and run on an image alone: {_short(error)}'
        ) from error
    for mode, output in found.items():
        if not isinstance(output, (list, tuple)) or not all(
            isinstance(value, Tensor) and value.ndim == 4 for value in output
        ):
            raise UserError(
                f'the backbone {cfg.type} gives {_kinds(output)} in {"training" if mode else "testing"}, '
                'which its head is made for: ConvNeXt gives a tuple of feature maps and nothing else'
            )
    shapes = {mode: [tuple(value.shape) for value in output] for mode, output in found.items()}
    if shapes[True] != shapes[False]:
        raise UserError(
            f'the backbone {cfg.type} gives other features in training ({shapes[True]}) than in testing '
            f'({shapes[False]}), and its head is made for both: ConvNeXt always gives the same'
        )
    for shape in shapes[True]:
        if shape[0] != 2:
            raise UserError(
                f'the backbone {cfg.type} gives {shape[0] // 2} feature maps an image (branches), which '
                'its heads are made for: ConvNeXt gives one'
            )
    return [Feature(shape, _stride(shape, size)) for shape in shapes[True]], size, names


def _run(cfg: Any, features: Sequence[Feature], previous: Feature | None = None, alone: bool = False) -> Ran:
    """Build a neck or head and run it on features of these shapes, after the output of the head before if it has one.

    ``alone``: it takes a feature instead of a tuple of them.
    """

    def run(device: str) -> Ran:
        module = build(cfg, device)
        module.train()
        inputs = [torch.rand(feature.shape, requires_grad=True) for feature in features]
        further = [torch.rand(previous.shape)] if previous else []
        outputs = [
            value
            for value in _tensors(module(inputs[0] if alone else tuple(inputs), *further))
            if value.is_floating_point()
        ]
        grads = torch.autograd.grad(
            [value for value in outputs if value.requires_grad],
            inputs,
            [torch.ones_like(value) for value in outputs if value.requires_grad],
            allow_unused=True,
        )
        # Strides are in pixels of the image that the features are of.
        known = next((f for f in features if f.stride), None)
        size = known.stride * known.shape[2] if known else 0
        return Ran(
            [i for i, grad in enumerate(grads) if grad is not None],
            [Feature(tuple(value.shape), _stride(value.shape, size)) for value in outputs],
        )

    return _on_any_device(run)


def _try_run(cfg: Any, features: Sequence[Feature], previous: Feature | None = None) -> Ran | None:
    """As :func:`_run`; None where the module cannot be built or run on features alone."""
    try:
        ran = _run(cfg, features, previous)
    except Exception:
        return None
    return ran if ran.used and ran.outputs else None


def _on_any_device(function: Callable, *args: Any) -> Any:
    """``function(device, *args)`` on the meta device, which costs nothing, or else on the CPU."""
    for device in DEVICES:
        try:
            with torch.device(device):
                return function(device, *args)
        except Exception as caught:
            error = caught
    raise error


def build(cfg: Any, device: str | None = None) -> nn.Module:
    """Build a model or a part of it for one process, on the meta device where that is possible; reads no weights."""
    cfg = copy.deepcopy(cfg)
    for _, part in _dicts(cfg):
        if part.get('type') in ('SyncBN', 'MMSyncBN'):
            part['type'] = 'BN'
        if 'teacher_ckpt' in part:  # would be read at once
            part['teacher_ckpt'] = None
    if device is None:
        return _on_any_device(lambda device: MODELS.build(cfg))
    return MODELS.build(cfg)


def _backbones(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], ConfigDict, str]]:
    """(path, the dict around, key) of every backbone; one inside of another belongs to that one."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key.endswith('backbone') and isinstance(item, dict) and 'type' in item:
                yield (*path, key), value, key
            else:
                yield from _backbones(item, (*path, key))
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            yield from _backbones(item, (*path, str(i)))


def _items(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key with its value, at every depth."""
    for _, part in _dicts(value):
        yield from part.items()


def _dicts(value: Any, path: str = '') -> Iterator[tuple[str, ConfigDict]]:
    """Every dict at every depth, this one first, with its path."""
    if isinstance(value, dict):
        yield path, value
    for key, item in (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    ):
        yield from _dicts(item, f'{path}.{key}' if path else str(key))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ():
        yield from _tensors(item)


def _stride(shape: Sequence[int], size: int) -> int | None:
    """Stride of a feature of an image of this size; a border of one position more or less is none."""
    if len(shape) != 4 or shape[2] != shape[3] or not shape[2] or not size:
        return None
    if size % shape[2] == 0:
        return size // shape[2]
    return next((stride for stride in (2, 4, 8, 16) if abs(shape[2] - size / stride) <= 1), None)


def _kinds(output: Any) -> str:
    if isinstance(output, (list, tuple)):
        return f'a {type(output).__name__} of ' + ', '.join(dict.fromkeys(_kinds(item) for item in output))
    return f'a tensor of {output.ndim} dimensions' if isinstance(output, Tensor) else type(output).__name__


def _is_pretrained(init_cfg: Any) -> bool:
    return any(
        isinstance(cfg, dict) and cfg.get('type') == 'Pretrained'
        for cfg in (init_cfg if isinstance(init_cfg, (list, tuple)) else [init_cfg])
    )


def _type_of(cfg: Any) -> str:
    return ' + '.join(part.type for part in cfg) if isinstance(cfg, (list, tuple)) else cfg.type


def _short(error: Exception) -> str:
    return f'{type(error).__name__}: {" ".join(str(error).split())[:300]}'


def _import_models(scope: str, cfg: Config) -> None:
    """Register what the model names; what is missing shows where it is built."""
    check_toolkit(scope)
    for name in _custom_imports(cfg):
        package = name.split('.')[0]
        if package not in CLASSIFIERS or _types_of(cfg.model, package) - set(CONVNEXTS):
            try:
                importlib.import_module(name)
            except Exception:  # beside a newer transformers, mmpretrain raises a TypeError
                continue


def _custom_imports(cfg: Config) -> list[str]:
    names = (cfg.get('custom_imports') or {}).get('imports', [])
    return [names] if isinstance(names, str) else list(names)


def _types_of(value: Any, package: str) -> set[str]:
    """The types below that are named after this package, such as ``'mmpretrain.ResNet'``."""
    return {
        item
        for key, item in _items(value)
        if key == 'type' and isinstance(item, str) and item.startswith(f'{package}.')
    }


def difference(before: Mapping, after: Mapping) -> dict:
    """What a config that inherits from ``before`` has to hold to be ``after``."""
    changed = {}
    for key, value in after.items():
        if key not in before:
            changed[key] = value
        elif value != before[key] or type(value) is not type(before[key]):
            if not isinstance(value, dict):
                changed[key] = value
            elif not isinstance(before[key], dict) or set(before[key]) - set(value):
                changed[key] = dict(_delete_=True, **value)
            else:
                changed[key] = difference(before[key], value)
    return changed


def _changed(before: Mapping, after: Mapping, path: str = '') -> Iterator[tuple[str, str, str]]:
    """(path, before, after) of every value that differs; of dicts with another type the whole."""
    for key, value in after.items():
        old = before.get(key)
        if value == old:
            continue
        place = f'{path}{key}'
        if isinstance(value, dict) and isinstance(old, dict) and value.get('type') == old.get('type'):
            yield from _changed(old, value, f'{place}.')
        else:
            yield place, _cell(old) if key in before else '', _cell(value)
    for key in before:
        if key not in after:
            yield f'{path}{key}', _cell(before[key]), '(removed)'


def _cell(value: Any) -> str:
    text = (
        f'{value["type"]}('
        + ', '.join(f'{key}={_as_code(item, FLAT)}' for key, item in value.items() if key not in ('type', '_delete_'))
        + ')'
        if isinstance(value, dict) and 'type' in value
        else _as_code(value, FLAT)
    )
    return text if len(text) <= CELL else text[: CELL - 1] + '…'


def _as_code(value: Any, column: int, indent: int = 0) -> str:
    """Python for a value of a config that begins at this column, in lines of at most 120 where that is possible."""
    if isinstance(value, dict):
        named = all(isinstance(key, str) and key.isidentifier() and not keyword.iskeyword(key) for key in value)
        opening, closing = ('dict(', ')') if named else ('{', '}')
        keys = [f'{key}=' if named else f'{key!r}: ' for key in value]
        items = list(value.values())
    elif isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        opening, closing = '[]' if isinstance(value, list) else '()'
        keys, items = [''] * len(value), list(value)
    else:
        return repr(value)
    parts = [key + _as_code(item, FLAT) for key, item in zip(keys, items)]
    flat = ', '.join(parts) + (',' if isinstance(value, tuple) and len(parts) == 1 else '')
    if column + len(opening + flat + closing) <= LINE or not parts:
        return opening + flat + closing
    inner = indent + 4
    lines = [f'{" " * inner}{key}{_as_code(item, inner + len(key) + 1, inner)},' for key, item in zip(keys, items)]
    return '\n'.join([opening, *lines, ' ' * indent + closing])


def read(path: str | Path) -> Config:
    """The config of a path or of ``'mmdet::...'``.

    Raises:
        UserError: There is none.
    """
    with tempfile.TemporaryDirectory() as folder:
        heir = Path(folder) / 'heir.py'  # Config.fromfile alone does not know 'mmdet::'
        heir.write_text(f'_base_ = {base_of(path)!r}\n')
        try:
            cfg = Config.fromfile(heir, import_custom_modules=False)  # of the old backbone, which may be missing
        except (OSError, ImportError) as error:
            raise UserError(f'the config {path} cannot be read: {_short(error)}') from error
    object.__setattr__(cfg, '_filename', base_of(path))  # past Config's own, which sets keys
    return cfg


def base_of(path: str | Path) -> str:
    """What a config inherits by from any folder: ``'mmdet::...'`` as it is, a path in full."""
    return str(path) if '::' in str(path) else str(Path(path).resolve())
