"""Layer-wise learning-rate decay by the official ConvNeXt rule, as an optimizer-wrapper constructor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS, OPTIMIZERS
from torch import nn
from torch.optim import Optimizer

from convnext_dense.engine.fsdp import whole_parameters
from convnext_dense.errors import UserError
from convnext_dense.models.staged import LayeredModule
from convnext_dense.weights.dialects import WRAPPED_MODULES

DECAY_TYPES = ('layer_wise', 'stage_wise')


class ConvNeXtLayerDecayConstructor(DefaultOptimWrapperConstructor):
    """Lower learning rates for the layers near the image; no weight decay for biases and 1-D parameters.

    Learning rate of a parameter: ``lr * decay_rate ** (num_layers + 1 - id)`` with the ids of
    :meth:`.LayeredModule.layer_id`; everything outside such a module, and the output norms, get the full rate. A
    backbone of this package is found by that class, wherever it sits in the model. Parameters with equal settings share
    one group. Adam and AdamW run fused where torch has a kernel for the device; ``fused=False`` in the optimizer's
    settings prevents it.

    Keys of ``paramwise_cfg``, all optional:

    - ``decay_type``: ``'layer_wise'`` (default) or ``'stage_wise'``.
    - ``decay_rate``: Factor from one layer to the one before it, above 0 and at most 1. Default 0.9.
    - ``num_layers``: Inferred from the depths (ConvNeXt: 6 for tiny, 12 for small to xlarge); where given, it must be
      that.
    - ``custom_keys``: As in mmengine: ``{part_of_a_name: dict(lr_mult=..., decay_mult=...)}``, the longest match
      counts. The factors multiply the rule above; other entries are set in the parameter group.

    Raises:
        UserError: A key is unknown, a value cannot be used, the model has no ConvNeXt, or a custom key matches nothing.
    """

    def _validate_cfg(self) -> None:
        super()._validate_cfg()
        cfg = dict(self.paramwise_cfg)
        self.decay_type = cfg.pop('decay_type', 'layer_wise')
        self.decay_rate = cfg.pop('decay_rate', 0.9)
        self.num_layers = cfg.pop('num_layers', None)
        self.custom_keys = cfg.pop('custom_keys', {})
        if cfg:
            raise UserError(
                f'paramwise_cfg has {sorted(cfg)}, which {type(self).__name__} does not know: use '
                'decay_type, decay_rate, num_layers, custom_keys'
            )
        if self.decay_type not in DECAY_TYPES:
            raise UserError(f'paramwise_cfg has decay_type={self.decay_type!r}: use one of {DECAY_TYPES}')
        if not 0 < self.decay_rate <= 1:
            raise UserError(
                f'paramwise_cfg has decay_rate={self.decay_rate}, which would raise the learning rate of '
                'early layers above the base rate or stop them: use 0 < decay_rate <= 1'
            )
        if self.base_lr is None:
            raise UserError(
                'layer decay scales the learning rate of the optimizer, which has none: set optim_wrapper.optimizer.lr'
            )

    def __call__(self, model: nn.Module) -> OptimWrapper:
        groups = self.param_groups(model)
        self._log_table(groups)
        params = [{key: value for key, value in group.items() if key not in ('layers', 'size')} for group in groups]
        optimizer = self._build_optimizer(params)
        return OPTIM_WRAPPERS.build(
            {'type': 'OptimWrapper', **self.optim_wrapper_cfg}, default_args=dict(optimizer=optimizer)
        )

    def _build_optimizer(self, params: list[dict]) -> Optimizer:
        devices = {param.device.type for group in params for param in group['params']}
        if (
            self.optimizer_cfg['type'] in ('Adam', 'AdamW')
            and devices <= {'cpu', 'cuda'}
            and not {'fused', 'foreach'} & set(self.optimizer_cfg)
        ):
            with suppress(RuntimeError):  # torch before 2.4 has no fused kernel for CPUs
                return OPTIMIZERS.build(dict(self.optimizer_cfg, params=[dict(group) for group in params], fused=True))
        return OPTIMIZERS.build(dict(self.optimizer_cfg, params=params))

    def param_groups(self, model: nn.Module) -> list[dict]:
        """Groups for a torch optimizer, stem to heads; with the ids of its ``layers`` and the ``size`` of each."""
        inner = getattr(model, 'module', model)
        with whole_parameters(model):  # shards are flat
            shapes = {_own_name(name): param.shape for name, param in inner.named_parameters()}
        backbones = {
            _own_name(f'{name}.') if name else '': module
            for name, module in inner.named_modules()
            if isinstance(module, LayeredModule)
        }
        if not backbones:
            raise UserError(
                f'{type(self).__name__} found no ConvNeXt in {type(model).__name__}: use the default '
                'constructor for this model (remove optim_wrapper.constructor)'
            )
        for prefix, backbone in backbones.items():
            if self.num_layers not in (None, backbone.num_layers):
                raise UserError(
                    f'paramwise_cfg has num_layers={self.num_layers}, the ConvNeXt at '
                    f'{prefix.rstrip(".") or "the top"!r} has {backbone.num_layers}: leave num_layers out'
                )
        unmatched = set(self.custom_keys)
        groups: dict[tuple, dict] = {}
        for name, param in inner.named_parameters():
            if not param.requires_grad:
                continue
            name = _own_name(name)
            if name.endswith('_flat_param'):
                raise UserError(
                    'FSDP merged the parameters of whole modules, but layer decay needs them one by one: '
                    'set strategy.model_wrapper.use_orig_params=True'
                )
            own_prefix = next((prefix for prefix in backbones if name.startswith(prefix)), None)
            layer: int | str = 'outside'
            scale = 1.0
            if own_prefix is not None:
                backbone = backbones[own_prefix]
                layer = backbone.layer_id(name[len(own_prefix) :], self.decay_type)
                scale = self.decay_rate ** (backbone.num_layers + 1 - layer)
                if scale > 1:
                    raise UserError(
                        f'layer id {layer} of {name} is above num_layers + 1 = {backbone.num_layers + 1} '
                        'and would raise its learning rate above the base rate: fix layer_id'
                    )
            weight_decay = 0.0 if len(shapes[name]) <= 1 or name.endswith('.bias') else self.base_wd
            custom = self._custom(name, unmatched)
            settings = {'lr': self.base_lr * scale * custom.pop('lr_mult', 1.0)}
            decay_mult = custom.pop('decay_mult', 1.0)
            if weight_decay is not None:
                settings['weight_decay'] = weight_decay * decay_mult
            settings.update(custom)
            group = groups.setdefault(
                tuple(sorted((key, repr(value)) for key, value in settings.items())),
                {'params': [], 'layers': set(), 'size': 0, **settings},
            )
            group['params'].append(param)
            group['layers'].add(layer)
            group['size'] += shapes[name].numel()
        if unmatched:
            raise UserError(
                f'custom_keys {sorted(unmatched)} of paramwise_cfg match no trainable parameter: correct '
                'them or take them out'
            )
        return list(groups.values())

    def _custom(self, name: str, unmatched: set[str]) -> dict:
        """A copy of the settings of the longest custom key in ``name`` (of equally long ones the first by alphabet)."""
        matches = sorted((key for key in self.custom_keys if key in name), key=lambda key: (-len(key), key))
        unmatched.difference_update(matches)
        return dict(self.custom_keys[matches[0]]) if matches else {}

    def _log_table(self, groups: Sequence[Mapping]) -> None:
        """One row a learning rate: a table that stays short for deep archs."""
        rows = [
            f'layer decay: {self.decay_type}, rate {self.decay_rate}, base lr {self.base_lr:g}, weight decay '
            f'{self.base_wd}, {len(groups)} parameter groups',
            f'{"layer":>14} {"lr":>11} {"tensors decayed":>16} {"not decayed":>12} {"parameters":>12}',
        ]
        for lr in sorted({group['lr'] for group in groups}):
            same = [group for group in groups if group['lr'] == lr]
            layers = set().union(*(group['layers'] for group in same))
            names = ', '.join(map(str, sorted(layers, key=lambda layer: (isinstance(layer, str), layer))))
            decayed = sum(len(group['params']) for group in same if group.get('weight_decay') != 0)
            rows.append(
                f'{names:>14} {lr:>11.4g} {decayed:>16} '
                f'{sum(len(group["params"]) for group in same) - decayed:>12} '
                f'{sum(group["size"] for group in same):>12,}'
            )
        print_log('\n'.join(rows), logger='current')


def _own_name(name: str) -> str:
    return WRAPPED_MODULES.sub('', name)
