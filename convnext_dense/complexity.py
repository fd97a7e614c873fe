"""Parameters and FLOPs of whole models, by the counting rule of the published tables.

One multiply-add is one FLOP. Matrix products, convolutions, normalisation and interpolation count; elementwise
operators, data movement, pooling and RoIAlign do not. Every operator that runs must stand in one of the tables below:
another one is an error, so that nothing is left out silently. Tensors are on torch's meta device, which has shapes and
no values: a count takes a second and next to no memory.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from convnext_dense.errors import UserError
from convnext_dense.models.convnext import ConvNeXt
from convnext_dense.toolkits import check_toolkit

NUM_BOX_ROIS, NUM_MASK_ROIS = 1000, 100  # for each stage of a cascade; the rule behind Table 3 of the paper
DETECTOR_SHAPE = (800, 1280)
PARTS = ('backbone', 'neck', 'heads')


# FLOPs of an operator of torch, from its arguments and its (first) output. The factors of normalisation and
# interpolation are those of fvcore.
PRODUCTS: dict[str, Callable[..., int]] = {
    'mm': lambda out, a, b, *_: out.numel() * a.shape[-1],
    'addmm': lambda out, bias, a, b, *_: out.numel() * a.shape[-1],
    'convolution': lambda out, x, weight, bias, stride, padding, dilation, transposed, *_: (
        (x if transposed else out).numel() * weight[0].numel()
    ),
}
# scaled_dot_product_attention arrives as these too on the meta device.
ATTENTION_PRODUCTS: dict[str, Callable[..., int]] = {
    'bmm': lambda out, a, b, *_: out.numel() * a.shape[-1],
    'baddbmm': lambda out, bias, a, b, *_: out.numel() * a.shape[-1],
}
PER_ELEMENT: dict[str, int] = {
    **dict.fromkeys(('native_layer_norm', 'native_group_norm'), 5),
    # Statistics are constants in a test.
    **dict.fromkeys(('native_batch_norm', '_native_batch_norm_legit_no_training', 'cudnn_batch_norm'), 2),
    'upsample_nearest2d': 1,
    'upsample_bilinear2d': 4,
    'upsample_bicubic2d': 16,
}
ZERO: frozenset[str] = frozenset(
    {
        # elementwise, also in place (with a trailing underscore)
        'abs',
        'add',
        'addcmul',
        'bitwise_not',
        'clamp',
        'clamp_min',
        'cos',
        'div',
        'eq',
        'erf',
        'exp',
        'floor',
        'ge',
        'gelu',
        'gt',
        'hardsigmoid',
        'hardswish',
        'hardtanh',
        'le',
        'leaky_relu',
        'log',
        'logical_and',
        'logical_not',
        'logical_or',
        'lt',
        'masked_fill',
        'maximum',
        'minimum',
        'mul',
        'ne',
        'neg',
        'pow',
        'reciprocal',
        'relu',
        'rsqrt',
        'rsub',
        'sigmoid',
        'silu',
        'sin',
        'softplus',
        'sqrt',
        'sub',
        'tanh',
        'where',
        # reductions and softmax
        '_log_softmax',
        '_safe_softmax',
        '_softmax',
        'amax',
        'amin',
        'argmax',
        'linalg_vector_norm',
        'max',
        'mean',
        'min',
        'sum',
        # pooling
        '_adaptive_avg_pool2d',
        'avg_pool2d',
        'max_pool2d_with_indices',
        # making and moving data
        '_reshape_alias',
        '_to_copy',
        '_unsafe_view',
        'alias',
        'arange',
        'as_strided',
        'cat',
        'clone',
        'constant_pad_nd',
        'copy',
        'detach',
        'empty',
        'empty_like',
        'expand',
        'fill',
        'flip',
        'full',
        'full_like',
        'im2col',
        'index',
        'index_select',
        'lift_fresh',
        'linspace',
        'native_dropout',
        'new_empty',
        'new_full',
        'new_ones',
        'new_zeros',
        'ones',
        'ones_like',
        'permute',
        'pixel_shuffle',
        'repeat',
        'roll',
        'scalar_tensor',
        'select',
        'slice',
        'split',
        'split_with_sizes',
        'squeeze',
        'stack',
        't',
        'transpose',
        'tril',
        'triu',
        'unbind',
        'unsqueeze',
        'view',
        'zero',
        'zeros',
        'zeros_like',
    }
)


@dataclass
class Complexity:
    """Of one model.

    Attributes:
        params: Parameters of backbone, neck and heads; auxiliary heads too, although they do not run in a test.
        flops: FLOPs of the same parts for one image.
        attention: The FLOPs among them of products of one activation with another, as in attention.
        shape: (height, width) of the image.
    """

    params: dict[str, int]
    flops: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PARTS, 0))
    attention: int = 0
    shape: tuple[int, int] = (0, 0)

    @property
    def total_params(self) -> int:
        return sum(self.params.values())

    @property
    def total_flops(self) -> int:
        return sum(self.flops.values())


class _Counter(TorchDispatchMode):
    """Counts every operator that runs inside; ``part`` is where the FLOPs go."""

    def __init__(self) -> None:
        super().__init__()
        self.part = 'heads'
        self.flops: Counter[str] = Counter()
        self.attention = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        namespace, name = packet._qualified_op_name.split('::')
        name = name.removesuffix('_')  # relu_ is relu in place
        out = result[0] if isinstance(result, (tuple, list)) else result
        if namespace != 'aten' or name not in PRODUCTS | ATTENTION_PRODUCTS | PER_ELEMENT and name not in ZERO:
            raise UserError(
                f'no rule says what the operator {packet._qualified_op_name} costs: add it to the tables '
                'of convnext_dense/complexity.py'
            )
        if name in ATTENTION_PRODUCTS:
            flops = ATTENTION_PRODUCTS[name](out, *args)
            self.attention += flops
        elif name in PRODUCTS:
            flops = PRODUCTS[name](out, *args)
        else:
            flops = PER_ELEMENT.get(name, 0) * (out.numel() if isinstance(out, Tensor) else 0)
        self.flops[self.part] += flops
        return result


class _NumbersOnCpu(TorchFunctionMode):
    """Models read drop path rates from a ``torch.linspace``: it needs values also where parameters have none."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.linspace:
            kwargs.setdefault('device', 'cpu')
        return func(*args, **kwargs)


def build_on_meta(cfg: Config) -> nn.Module:
    """The model of a config on the meta device: shapes without values.

    Raises:
        UserError: The toolkit of the config is not installed.
    """
    scope = cfg.get('default_scope') or cfg.model.get('_scope_') or 'mmengine'
    check_toolkit(scope)
    init_default_scope(scope)
    with torch.device('meta'), _NumbersOnCpu():
        return MODELS.build(copy.deepcopy(cfg.model))


def image_shape(cfg: Config) -> tuple[int, int]:
    """(height, width) that the published tables take for a config: 1280x800, and for segmentors the test scale."""
    if 'decode_head' not in cfg.model:
        return DETECTOR_SHAPE
    scale = [step.scale for step in cfg.test_dataloader.dataset.pipeline if step.type == 'Resize' and 'scale' in step]
    if len(scale) != 1:
        raise UserError('the test pipeline has no Resize(scale=...) that says how large images are: give --shape')
    width, height = scale[0]
    return height, width


def count(cfg: Config, shape: tuple[int, int] | None = None) -> Complexity:
    """Parameters and FLOPs of the detector or segmentor that a config describes, in a test on one image.

    Args:
        cfg: A config of mmdet or mmseg.
        shape: (height, width) of the image; default :func:`image_shape`.

    Raises:
        UserError: An operator has no rule, or the model cannot be run without values.
    """
    model = build_on_meta(cfg).eval()
    return _count(model, _run_model, shape or image_shape(cfg))


def count_classifier(arch: str, side: int) -> Complexity:
    """The same for the ImageNet classifier of an arch: final norm, mean over the image, 1000 classes."""
    with torch.device('meta'):
        backbone = ConvNeXt(arch, out_indices=3)
        model = nn.ModuleDict(dict(backbone=backbone, head=nn.Linear(backbone.channels[-1], 1000))).eval()
    return _count(model, lambda model, x: model['head'](model['backbone'](x)[0].mean((-2, -1))), (side, side))


def _count(model: nn.Module, run: Callable[[nn.Module, Tensor], Any], shape: tuple[int, int]) -> Complexity:
    counter = _Counter()
    params = {
        part: sum(p.numel() for p in getattr(model, part).parameters()) if hasattr(model, part) else 0
        for part in PARTS[:2]
    }
    params['heads'] = sum(p.numel() for p in model.parameters()) - sum(params.values())
    for part in PARTS[:2]:
        if hasattr(model, part):
            module = getattr(model, part)
            module.register_forward_pre_hook(lambda *_, part=part: setattr(counter, 'part', part))
            module.register_forward_hook(lambda *_: setattr(counter, 'part', 'heads'))
    image = torch.empty(1, 3, *shape, device='meta')
    try:
        # The device is for what models make while they run.
        with torch.no_grad(), torch.device('meta'), counter:
            run(model, image)
    except RuntimeError as error:
        raise UserError(
            f'{type(model).__name__} cannot be counted: it does not run on tensors without values, as '
            f'operators of mmcv do not ({str(error).splitlines()[0]})'
        ) from error
    return Complexity(params, {part: counter.flops[part] for part in PARTS}, counter.attention, shape)


def _run_model(model: nn.Module, image: Tensor) -> None:
    """Everything between the image and the outputs of the heads, at fixed numbers of RoIs."""
    if not hasattr(model, 'roi_head'):
        model(image, mode='tensor')
        return
    roi_head = model.roi_head
    if type(roi_head).__name__ not in ('StandardRoIHead', 'CascadeRoIHead'):
        raise UserError(
            f'the rule of the published tables covers StandardRoIHead and CascadeRoIHead, not '
            f'{type(roi_head).__name__}: give a detector with one of these'
        )
    features = model.extract_feat(image)
    if model.with_rpn:
        model.rpn_head(features)
    for kind, number in (('bbox', NUM_BOX_ROIS), ('mask', NUM_MASK_ROIS)):
        if not getattr(roi_head, f'with_{kind}'):
            continue
        stages = zip(_listed(getattr(roi_head, f'{kind}_roi_extractor')), _listed(getattr(roi_head, f'{kind}_head')))
        for extractor, head in stages:
            # RoIAlign, which counts zero.
            rois = image.new_empty(number, extractor.out_channels, *extractor.roi_layers[0].output_size)
            head(roi_head.shared_head(rois) if roi_head.with_shared_head else rois)


def _listed(modules: nn.Module) -> list[nn.Module]:
    return list(modules) if isinstance(modules, nn.ModuleList) else [modules]
