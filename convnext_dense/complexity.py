"""Parameters and FLOPs of whole models, by the counting rule of the published tables.

One multiply-add is one FLOP. Matrix products, convolutions, normalisation and interpolation count; elementwise
operators, data movement, pooling and RoIAlign do not. Every operator that runs must be in one of the tables below:
another one is an error, so that nothing is left out silently. Tensors are on torch's meta device, which has shapes and
no values: a count takes a second and next to no memory.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from convnext_dense.errors import UserError
from convnext_dense.models.convnext import ConvNeXt
from convnext_dense.models.isotropic import ConvNeXtIsotropic
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
# These count zero; their forms that work in place (with a trailing underscore) as well.
ELEMENTWISE = """
    abs add addcmul bitwise_not clamp clamp_min cos div eq erf exp floor ge gelu gt hardsigmoid hardswish hardtanh
    le leaky_relu log logical_and logical_not logical_or lt masked_fill maximum minimum mul ne neg pow reciprocal
    relu rsqrt rsub sigmoid silu sin softplus sqrt sub tanh where
"""
REDUCTIONS = """
    _log_softmax _safe_softmax _softmax amax amin argmax linalg_vector_norm max mean min sum var
"""
POOLING = """
    _adaptive_avg_pool2d avg_pool2d max_pool2d_with_indices
"""
DATA_MOVEMENT = """
    _reshape_alias _to_copy _unsafe_view alias arange as_strided cat clone constant_pad_nd copy detach empty
    empty_like expand fill flip full full_like im2col index index_select lift_fresh linspace native_dropout
    new_empty new_full new_ones new_zeros ones ones_like permute pixel_shuffle promote_types repeat roll scalar_tensor
    select slice split split_with_sizes squeeze stack t transpose tril triu unbind unsqueeze view zero zeros zeros_like
"""
ZERO = frozenset(f'{ELEMENTWISE} {REDUCTIONS} {POOLING} {DATA_MOVEMENT}'.split())


@dataclass
class Complexity:
    """Parameters and FLOPs of one model.

    Attributes:
        params: Parameters of backbone, neck and heads; auxiliary heads too, although they do not run in a test.
        flops: FLOPs of the same parts for one image.
        attention: The part of the FLOPs that are products of one activation with another, as in attention.
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
    """Counts every operator that runs inside.

    Attributes:
        part: The part of the model that is running.
        flops: FLOPs of each part.
        attention: FLOPs of products of one activation with another.
    """

    def __init__(self) -> None:
        super().__init__()
        self.part = 'heads'
        self.flops: Counter[str] = Counter()
        self.attention = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        operator = func._overloadpacket._qualified_op_name
        output = result[0] if isinstance(result, (tuple, list)) else result
        name = operator.removeprefix('aten::').removesuffix('_')  # relu_ is relu in place
        if name in ATTENTION_PRODUCTS:
            flops = ATTENTION_PRODUCTS[name](output, *args)
            self.attention += flops
        elif name in PRODUCTS:
            flops = PRODUCTS[name](output, *args)
        elif name in PER_ELEMENT:
            flops = PER_ELEMENT[name] * output.numel()
        elif name in ZERO:
            flops = 0
        else:
            raise UserError(
                f'no rule says what the operator {operator} costs: add it to the tables of convnext_dense/complexity.py'
            )
        self.flops[self.part] += flops
        return result

    def enter(self, part: str, *_: Any) -> None:
        """Count for ``part`` from here; as a forward pre-hook of it."""
        self.part = part

    def leave(self, *_: Any) -> None:
        """Count for the heads from here; as a forward hook."""
        self.part = 'heads'


class _NumbersOnCpu(TorchFunctionMode):
    """Models read drop path rates from a ``torch.linspace``: it needs values also where parameters have none."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.linspace:
            kwargs.setdefault('device', 'cpu')
        return func(*args, **kwargs)


def build_on_meta(cfg: Config) -> nn.Module:
    """Build the model of a config on the meta device: shapes without values.

    Raises:
        UserError: The toolkit of the config is not installed.
    """
    scope = cfg.get('default_scope') or cfg.model.get('_scope_') or 'mmengine'
    check_toolkit(scope)
    init_default_scope(scope)
    with torch.device('meta'), _NumbersOnCpu():
        return MODELS.build(copy.deepcopy(cfg.model))


def image_shape(cfg: Config) -> tuple[int, int]:
    """Return the (height, width) of the published tables: 800x1280 for detectors, the test scale for segmentors.

    Raises:
        UserError: The test pipeline of a segmentor does not say how large images are.
    """
    if 'decode_head' not in cfg.model:
        return DETECTOR_SHAPE
    scales = []
    for step in cfg.test_dataloader.dataset.pipeline:
        if step.type == 'Resize' and 'scale' in step:
            scales.append(step.scale)
    if len(scales) != 1:
        raise UserError('the test pipeline has no Resize(scale=...) that says how large images are: give --shape')
    width, height = scales[0]
    return height, width


def count(cfg: Config, shape: tuple[int, int] | None = None) -> Complexity:
    """Count the detector or segmentor of a config, in a test on one image.

    Args:
        cfg: A config of mmdet or mmseg.
        shape: (height, width) of the image; default :func:`image_shape`.

    Raises:
        UserError: An operator has no rule, or the model cannot be run without values.
    """
    model = build_on_meta(cfg).eval()
    return _count(model, run_forward, shape or image_shape(cfg))


def count_classifier(arch: str, side: int) -> Complexity:
    """Count the ImageNet classifier of an arch: backbone, final norm, mean over the image, 1000 classes.

    Args:
        arch: Name of the arch.
        side: Height and width of the image.
    """
    with torch.device('meta'):
        backbone = ConvNeXt(arch, out_indices=3)
    return _count_classifier(backbone, side)


def count_isotropic_classifier(arch: str, side: int) -> Complexity:
    """Count the ImageNet classifier of an isotropic arch, as :func:`count_classifier` does."""
    with torch.device('meta'):
        backbone = ConvNeXtIsotropic(arch)
    return _count_classifier(backbone, side)


def _count_classifier(backbone: ConvNeXt | ConvNeXtIsotropic, side: int) -> Complexity:
    with torch.device('meta'):
        model = nn.ModuleDict(dict(backbone=backbone, head=nn.Linear(backbone.channels[-1], 1000))).eval()
    return _count(model, _run_classifier, (side, side))


def _run_classifier(model: nn.ModuleDict, image: Tensor) -> None:
    (features,) = model['backbone'](image)
    model['head'](features.mean((-2, -1)))  # (N, C, H, W) -> (N, C)


def _count(model: nn.Module, run: Callable[[Any, Tensor], Any], shape: tuple[int, int]) -> Complexity:
    """Count a model on the meta device while ``run(model, image)`` runs it on an image (1, 3, height, width)."""
    counter = _Counter()
    params = dict.fromkeys(PARTS, 0)
    for name, part in model.named_children():
        num_params = sum(param.numel() for param in part.parameters())
        if name in ('backbone', 'neck'):
            params[name] = num_params
            part.register_forward_pre_hook(partial(counter.enter, name))
            part.register_forward_hook(counter.leave)
    params['heads'] = sum(param.numel() for param in model.parameters()) - params['backbone'] - params['neck']
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
    except (AssertionError, TypeError) as error:
        reason = str(error).partition('\n')[0] or type(error).__name__
        raise UserError(
            f'{type(model).__name__} cannot be counted: it does not run on an image alone ({reason}), without what '
            'a data set knows about it'
        ) from error
    return Complexity(params, {part: counter.flops[part] for part in PARTS}, counter.attention, shape)


def run_forward(model: nn.Module, image: Tensor) -> None:
    """Run everything between the image and the outputs of the heads, at fixed numbers of RoIs."""
    if hasattr(model, 'roi_head'):
        _run_two_stages(model, image)
    else:
        model(image, mode='tensor')


def _run_two_stages(model: nn.Module, image: Tensor) -> None:
    from mmdet.models.roi_heads import CascadeRoIHead, StandardRoIHead

    roi_head: Any = model.roi_head
    if type(roi_head) not in (StandardRoIHead, CascadeRoIHead):  # subclasses run more than these do
        raise UserError(
            f'the rule of the published tables covers StandardRoIHead and CascadeRoIHead, not '
            f'{type(roi_head).__name__}: give a detector with one of these'
        )
    detector: Any = model
    features = detector.extract_feat(image)
    if detector.with_rpn:
        detector.rpn_head(features)
    if roi_head.with_bbox:
        _run_roi_stages(roi_head, roi_head.bbox_roi_extractor, roi_head.bbox_head, NUM_BOX_ROIS, image)
    if roi_head.with_mask:
        _run_roi_stages(roi_head, roi_head.mask_roi_extractor, roi_head.mask_head, NUM_MASK_ROIS, image)


def _run_roi_stages(roi_head: Any, extractors: nn.Module, heads: nn.Module, num_rois: int, image: Tensor) -> None:
    """Run one kind of heads, each on RoIs of its extractor; RoIAlign itself counts zero."""
    for extractor, head in zip(_stages(extractors), _stages(heads), strict=True):
        rois = image.new_empty(num_rois, extractor.out_channels, *extractor.roi_layers[0].output_size)
        head(roi_head.shared_head(rois) if roi_head.with_shared_head else rois)


def _stages(modules: nn.Module) -> list[Any]:
    """Return the modules of a cascade, or the single one."""
    return list(modules) if isinstance(modules, nn.ModuleList) else [modules]
