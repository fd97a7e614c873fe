"""Coordinates of a training that diverges: every operator that reads at positions answers NaN, and none reads there."""

import math

import pytest
import torch
from torch import Tensor

ROIS = torch.tensor([[0, 1.0, 1, 5, 6], [0, 2.0, 0, 7, 7]])
SHAPES = torch.tensor([[8, 8]])
STARTS = torch.tensor([0])


def rois_with(value: float) -> Tensor:
    rois = ROIS.clone()
    rois[1, 3] = value
    return rois


def offsets_with(value: float, *shape: int) -> Tensor:
    offsets = torch.zeros(*shape)
    offsets[0, 1, 2, 0] = value
    return offsets.requires_grad_()


def attention(ops, features: Tensor, value: float) -> Tensor:
    locations = torch.full((1, 3, 1, 1, 2, 2), 0.5)
    locations[0, 1, 0, 0, 1, 0] = value
    function = ops.multi_scale_deform_attn.MultiScaleDeformableAttnFunction
    values = features.flatten(2).transpose(1, 2)[:, :, None]
    return function.apply(values, SHAPES, STARTS, locations, torch.full((1, 3, 1, 1, 2), 0.5), 64)


# Of mmcv.ops, its features (1, 4, 8, 8) and the value of one coordinate.
LAYERS = {
    'roi_align': lambda ops, x, value: ops.roi_align(x, rois_with(value), (3, 3), 1.0, 0, 'avg', True),
    'roi_align, fixed samples': lambda ops, x, value: ops.roi_align(x, rois_with(value), (3, 3), 1.0, 2, 'avg', True),
    'roi_align, maximum': lambda ops, x, value: ops.roi_align(x, rois_with(value), (3, 3), 1.0, 0, 'max', True),
    'roi_pool': lambda ops, x, value: ops.roi_pool(x, rois_with(value), (3, 3), 1.0),
    'deform_roi_pool': lambda ops, x, value: ops.deform_roi_pool(x, rois_with(value), None, (3, 3)),
    'deform_roi_pool, offset': lambda ops, x, value: ops.deform_roi_pool(
        x, ROIS, offsets_with(value, 2, 2, 3, 3), (3, 3)
    ),
    'deform_conv2d': lambda ops, x, value: ops.deform_conv2d(
        x, offsets_with(value, 1, 18, 8, 8), torch.ones(4, 4, 3, 3, requires_grad=True), 1, 1
    ),
    'deform_conv2d, weight alone': lambda ops, x, value: ops.deform_conv2d(
        x.detach(), offsets_with(value, 1, 18, 8, 8).detach(), torch.ones(4, 4, 3, 3, requires_grad=True), 1, 1
    ),
    'modulated_deform_conv2d': lambda ops, x, value: ops.modulated_deform_conv2d(
        x, offsets_with(value, 1, 18, 8, 8), torch.ones(1, 9, 8, 8), torch.ones(4, 4, 3, 3), None, 1, 1
    ),
    'multi-scale deformable attention': attention,
}


@pytest.mark.parametrize('layer', LAYERS)
def test_finite_coordinates_give_numbers(ops, layer):
    features = torch.ones(1, 4, 8, 8, requires_grad=True)
    output = LAYERS[layer](ops, features, 0.5)
    assert output.isfinite().all()
    output.sum().backward()
    assert features.grad is None or features.grad.isfinite().all()


@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize('layer', LAYERS)
def test_other_coordinates_show(ops, layer, value):
    features = torch.ones(1, 4, 8, 8, requires_grad=True)
    output = LAYERS[layer](ops, features, value)
    assert output.isnan().any()
    output.sum().backward()  # ends
    if features.grad is not None and layer != 'multi-scale deformable attention':  # its output shows alone
        assert features.grad.isnan().any()


class Pack(torch.nn.Module):
    def __init__(self, ops, modulated: bool) -> None:
        super().__init__()
        pack = ops.ModulatedDeformConv2dPack if modulated else ops.DeformConv2dPack
        self.layer = pack(4, 4, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        return self.layer(image)


@pytest.mark.parametrize('modulated', [False, True])
def test_deformable_convolutions_are_exported(ops, modulated):
    """No question about values is left in the graph."""
    layer = Pack(ops, modulated).eval()
    image = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        program = torch.export.export(layer, (image,), strict=False)
        graphs = [part.code for part in program.graph_module.modules() if isinstance(part, torch.fx.GraphModule)]
        assert any('torchvision.deform_conv2d' in code for code in graphs)
        torch.testing.assert_close(program.module()(image), layer(image))
