"""Counts of parameters and FLOPs, against counts by hand and by torch's own counter."""

import copy

import pytest
import torch
from helpers import ROOT
from mmengine.config import Config
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from convnext_dense import ConvNeXt, UserError
from convnext_dense.complexity import PARTS, _count, count, count_classifier, image_shape

ARCH = dict(depths=[1, 1, 1, 1], channels=[8, 16, 24, 32])


def config(leaf: str) -> Config:
    pytest.importorskip('mmdet')
    pytest.importorskip('mmseg')
    return Config.fromfile(ROOT / 'configs' / leaf)


def flops_of(module: nn.Module, *sizes: int) -> int:
    with torch.device('meta'):
        return _count(
            copy.deepcopy(module).to('meta').eval(), lambda module, image: module(image.new_empty(sizes)), (1, 1)
        ).total_flops


class Attention(nn.Module):
    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused = fused

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.fused:
            return nn.functional.scaled_dot_product_attention(x, x, x)
        return (x @ x.transpose(-2, -1)).softmax(-1) @ x


# One multiply-add is one; by hand.
@pytest.mark.parametrize(
    'module, sizes, flops',
    [
        (nn.Conv2d(3, 8, 4, 4), (2, 3, 16, 16), 2 * 8 * 4 * 4 * 3 * 4 * 4),
        (nn.Conv2d(8, 8, 7, padding=3, groups=8), (1, 8, 10, 10), 8 * 10 * 10 * 7 * 7),
        (nn.ConvTranspose2d(4, 6, 2, 2), (1, 4, 5, 5), 4 * 5 * 5 * 6 * 2 * 2),
        (nn.Linear(5, 7), (3, 5), 3 * 5 * 7),
        (nn.Linear(5, 7), (2, 3, 3, 5), 2 * 3 * 3 * 5 * 7),
        (nn.Linear(5, 7, bias=False), (2, 3, 5), 2 * 3 * 5 * 7),
        (nn.LayerNorm(6), (2, 3, 6), 5 * 36),
        (nn.GroupNorm(2, 6), (2, 6, 3, 3), 5 * 108),
        (nn.BatchNorm2d(6), (2, 6, 3, 3), 2 * 108),
        (nn.Upsample(scale_factor=2), (1, 2, 3, 3), 72),
        (nn.Upsample(scale_factor=2, mode='bilinear'), (1, 2, 3, 3), 4 * 72),
        (nn.Sequential(nn.GELU(), nn.ReLU(inplace=True), nn.Softmax(-1), nn.MaxPool2d(2)), (1, 2, 4, 4), 0),
        (Attention(fused=False), (2, 4, 10, 8), 2 * 2 * 4 * 10 * 10 * 8),
        (Attention(fused=True), (2, 4, 10, 8), 2 * 2 * 4 * 10 * 10 * 8),
    ],
)
def test_count_by_hand(module, sizes, flops):
    assert flops_of(module, *sizes) == flops


def test_products_agree_with_the_counter_of_torch():
    """torch counts two for a multiply-add, and nothing for norms."""
    backbone = ConvNeXt(ARCH).eval()
    with FlopCounterMode(display=False) as theirs, torch.no_grad():
        backbone(torch.zeros(1, 3, 64, 96))
    # Elements that are normalised: stem, blocks, downsampling, outputs.
    stages = [channels * (16 >> i) * (24 >> i) for i, channels in enumerate(ARCH['channels'])]
    norms = stages[0] + sum(stages) + sum(stages[:3]) + sum(stages)
    with torch.device('meta'):
        model = nn.ModuleDict(dict(backbone=ConvNeXt(ARCH))).eval()
    ours = _count(model, lambda model, image: model['backbone'](image), (64, 96))
    assert ours.total_flops == theirs.get_total_flops() // 2 + 5 * norms
    assert ours.total_params == sum(p.numel() for p in backbone.parameters())
    assert ours.flops == dict(backbone=ours.total_flops, neck=0, heads=0) and ours.attention == 0


def test_unknown_operator_is_an_error():
    with pytest.raises(UserError, match='what the operator aten::cumsum costs'):
        _count(nn.ModuleList(), lambda _, image: image.cumsum(0), (4, 4))


def test_forward_that_needs_values_is_an_error():
    with pytest.raises(UserError, match='ModuleList cannot be counted: it does not run on tensors without values'):
        _count(nn.ModuleList(), lambda _, image: image.nonzero(), (4, 4))


@pytest.mark.parametrize(
    'leaf, shape',
    [
        ('mask_rcnn/swin_t_3x_coco.py', (800, 1280)),
        ('upernet/swin_t_512_160k_ade20k.py', (512, 2048)),
        ('upernet/swin_b_in22k_640_160k_ade20k.py', (640, 2560)),
    ],
)
def test_image_of_the_tables(leaf, shape):
    assert image_shape(config(leaf)) == shape


def test_parts_of_a_detector():
    """1,000 box and 100 mask RoIs, whatever the image; the neck's first convolutions know the backbone's channels."""
    small, large = (count(config('mask_rcnn/convnext_t_3x_coco.py'), shape) for shape in ((320, 320), (320, 640)))
    assert list(small.flops) == list(small.params) == list(PARTS)
    assert large.flops['backbone'] == 2 * small.flops['backbone'] and large.flops['neck'] == 2 * small.flops['neck']
    # A 3x3 and two 1x1 convolutions of the RPN on five levels.
    per_position = 256 * (9 * 256 + 3 + 12)
    positions = sum((320 >> i) ** 2 for i in range(2, 7))
    rpn = per_position * positions
    assert large.flops['heads'] - small.flops['heads'] == rpn
    boxes = 1000 * (256 * 7 * 7 * 1024 + 1024 * 1024 + 1024 * (81 + 320))
    masks = 100 * (4 * 256 * 256 * 9 * 14 * 14 + 256 * 256 * 4 * 14 * 14 + 256 * 80 * 28 * 28)
    assert small.flops['heads'] == rpn + boxes + masks
    neck = 256 * (sum((96, 192, 384, 768)) + 4 + 4 * (9 * 256 + 1))
    assert small.params['neck'] == large.params['neck'] == neck and small.total_params == 48_095_376


def test_cascade_has_three_stages():
    one, three = (
        count(config(f'{name}/convnext_t_3x_coco.py'), (320, 320)) for name in ('mask_rcnn', 'cascade_mask_rcnn')
    )
    assert (one.flops['backbone'], one.flops['neck']) == (three.flops['backbone'], three.flops['neck'])
    masks = 100 * (4 * 256 * 256 * 9 * 14 * 14 + 256 * 256 * 4 * 14 * 14 + 256 * 80 * 28 * 28)
    # Four convolutions with BN, one fully connected layer, classes and boxes.
    boxes = 1000 * (4 * (9 * 256 + 2) * 256 * 7 * 7 + 256 * 7 * 7 * 1024 + 1024 * (81 + 320))
    rpn = 256 * (9 * 256 + 3 + 12) * sum((320 >> i) ** 2 for i in range(2, 7))
    assert three.flops['heads'] == rpn + 3 * (boxes + masks)


def test_auxiliary_head_has_parameters_and_no_flops():
    whole = config('upernet/convnext_t_512_160k_ade20k.py')
    without = copy.deepcopy(whole)
    without.model.auxiliary_head = None
    whole, without = (count(cfg, (256, 256)) for cfg in (whole, without))
    assert whole.flops == without.flops
    # A 3x3 convolution without bias, BN, 150 classes.
    assert whole.total_params - without.total_params == 384 * 256 * 9 + 2 * 256 + 256 * 150 + 150


def test_attention_of_swin():
    """Windows of 7x7 at 224x224: no padding, 49 keys for each of 56 * 56 queries and so on, two products."""
    found = count(config('upernet/swin_t_512_160k_ade20k.py'), (224, 224))
    assert found.attention == sum(2 * depth * (56 >> i) ** 2 * 49 * (96 << i) for i, depth in enumerate((2, 2, 6, 2)))


def test_classifier_of_imagenet():
    found = count_classifier('tiny', 224)
    assert found.total_params == 28_589_128  # torchvision's convnext_tiny
    assert round(found.total_flops / 1e9, 1) == 4.5 and found.shape == (224, 224)


def test_heads_with_other_rois_are_an_error():
    cfg = config('mask_rcnn/convnext_t_3x_coco.py')
    cfg.model.roi_head.type = 'MaskScoringRoIHead'
    cfg.model.roi_head.mask_iou_head = dict(type='MaskIoUHead')
    with pytest.raises(UserError, match='covers StandardRoIHead and CascadeRoIHead, not MaskScoringRoIHead'):
        count(cfg)
