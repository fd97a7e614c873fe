"""The published figures of the roadmap beside counts of its networks: ``tools/get_flops.py --roadmap``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from convnext_dense.models.layers import LayerNorm2d
from convnext_dense.models.roadmap import REGIMES, STEPS, ConvNeXtRoadmap

SOURCE = 'arXiv 2201.03545, Figure 2 and appendix Tables 10 (ResNet-50 to ConvNeXt-T) and 11 (ResNet-200 to ConvNeXt-B)'
NUM_CLASSES, SIDE = 1000, 224

TITLES = {
    'resnet': 'ResNet, PyTorch recipe',
    'resnet_enhanced': 'ResNet, enhanced recipe',
    'stage_ratio': 'stage ratio',
    'patchify_stem': '"patchify" stem',
    'depthwise_conv': 'depthwise conv',
    'increase_width': 'increase width',
    'inverting_dimensions': 'inverting dimensions',
    'move_up_depthwise_conv': 'move up depthwise conv',
    'kernel_5': 'kernel size 5',
    'kernel_7': 'kernel size 7',
    'kernel_9': 'kernel size 9',
    'kernel_11': 'kernel size 11',
    'relu_to_gelu': 'ReLU to GELU',
    'fewer_activations': 'fewer activations',
    'fewer_norms': 'fewer norms',
    'bn_to_ln': 'BN to LN',
    'separate_downsampling': 'separate downsampling convs = ConvNeXt',
}
# GFLOPs and ImageNet-1K top-1 (%) as printed.
PUBLISHED: dict[str, dict[str, tuple[str, str]]] = {
    'T': {
        'resnet': ('4.09', '76.13'),
        'resnet_enhanced': ('4.09', '78.82'),
        'stage_ratio': ('4.53', '79.36'),
        'patchify_stem': ('4.42', '79.51'),
        'depthwise_conv': ('2.35', '78.28'),
        'increase_width': ('5.27', '80.50'),
        'inverting_dimensions': ('4.64', '80.64'),
        'move_up_depthwise_conv': ('4.07', '79.92'),
        'kernel_5': ('4.10', '80.35'),
        'kernel_7': ('4.15', '80.57'),
        'kernel_9': ('4.21', '80.57'),
        'kernel_11': ('4.29', '80.47'),
        'relu_to_gelu': ('4.15', '80.62'),
        'fewer_activations': ('4.15', '81.27'),
        'fewer_norms': ('4.15', '81.41'),
        'bn_to_ln': ('4.46', '81.47'),
        'separate_downsampling': ('4.49', '81.97'),
    },
    'B': {
        'resnet': ('15.01', '78.20'),
        'resnet_enhanced': ('15.01', '81.14'),
        'stage_ratio': ('14.52', '81.33'),
        'patchify_stem': ('14.38', '81.59'),
        'depthwise_conv': ('7.23', '80.54'),
        'increase_width': ('16.76', '81.85'),
        'inverting_dimensions': ('15.68', '82.64'),
        'move_up_depthwise_conv': ('14.63', '82.04'),
        'kernel_5': ('14.70', '82.32'),
        'kernel_7': ('14.81', '82.30'),
        'kernel_9': ('14.95', '82.27'),
        'kernel_11': ('15.13', '82.18'),
        'relu_to_gelu': ('14.81', '82.19'),
        'fewer_activations': ('14.81', '82.71'),
        'fewer_norms': ('14.81', '83.17'),
        'bn_to_ln': ('14.81', '83.35'),
        'separate_downsampling': ('15.35', '83.60'),
    },
}
# The last two rows of the T table have slipped: what they are compared with, by our reading.
SLIPPED = {('T', 'bn_to_ln'): '4.15', ('T', 'separate_downsampling'): '4.46'}
NOTE = (
    '(*) As printed; compared with 4.15 and 4.46. The end of the published T table has slipped by one row: 4.46 is '
    'the figure of ConvNeXt-T and 4.49 that of Swin-T. Figure 2 prints 4.2 and 4.5, and the B table has no such jump.'
)
COUNTING_RULE = 'One multiply-add is one FLOP; convolutions and linear layers of the ImageNet classifier at 224x224.'


@dataclass(frozen=True)
class Row:
    """One step in one regime.

    Attributes:
        flops: Counted: multiply-adds of convolutions and linear layers of the classifier.
        params: Counted: parameters of the classifier.
        published_gflops, published_top1: As printed.
        compared_gflops: What ``flops`` is compared with: as printed, apart from the two figures that have slipped.
    """

    regime: str
    step: str
    flops: int
    params: int
    published_gflops: str
    published_top1: str
    compared_gflops: str

    @property
    def is_slipped(self) -> bool:
        """Whether the published figure stands in a wrong row."""
        return self.compared_gflops != self.published_gflops

    @property
    def difference(self) -> float:
        """Counted minus published, in GFLOPs."""
        return self.flops / 1e9 - float(self.compared_gflops)


class Classifier(nn.Module):
    """The ImageNet classifier of a step: mean over the map, LayerNorm in ConvNeXt only, Linear."""

    def __init__(self, step: str, regime: str) -> None:
        super().__init__()
        self.backbone = ConvNeXtRoadmap(step, regime, out_indices=-1)
        channels = self.backbone.channels[-1]
        self.backbone.norm3 = nn.Identity()  # of dense prediction
        self.norm = LayerNorm2d(channels, eps=1e-6) if self.backbone.design.separate_downsampling else nn.Identity()
        self.head = nn.Linear(channels, NUM_CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, 1000)."""
        (features,) = self.backbone(image)
        return self.head(self.norm(features.mean((-2, -1), keepdim=True)).flatten(1))


def count_step(step: str, regime: str) -> tuple[int, int]:
    """Return the FLOPs and the parameters of the classifier of a step, without values (torch's meta device)."""
    flops = 0

    def add(layer: nn.Module, _: tuple[Tensor, ...], out: Tensor) -> None:
        nonlocal flops
        flops += (
            out.numel() * layer.get_parameter('weight')[0].numel()
        )  # one multiply-add per output value and weight that it reads

    with torch.device('meta'):
        model = Classifier(step, regime).eval()
    for layer in model.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.register_forward_hook(add)
        elif isinstance(layer, nn.BatchNorm2d):
            layer.forward = nn.Identity().forward  # type: ignore[method-assign]  # counts nothing, and is slow here
    with torch.no_grad():
        model(torch.empty(1, 3, SIDE, SIDE, device='meta'))
    return flops, sum(param.numel() for param in model.parameters())


@cache
def rows() -> tuple[Row, ...]:
    """Count every step of both regimes, in the order of the paper: 34 rows, of which two pairs share a network."""
    found = []
    for regime in REGIMES:
        for step in STEPS:
            flops, params = count_step(step, regime)
            gflops, top1 = PUBLISHED[regime][step]
            compared = SLIPPED.get((regime, step), gflops)
            found.append(Row(regime, step, flops, params, gflops, top1, compared))
    return tuple(found)


def text_lines() -> Iterator[str]:
    """Both tables and their notes, for a terminal."""
    header = ('GFLOPs counted', 'published', 'difference', 'top-1 published', 'params counted')
    for regime, name in (('T', 'ResNet-50 to ConvNeXt-T'), ('B', 'ResNet-200 to ConvNeXt-B')):
        yield f'{name:<40}' + ''.join(f'{cell:>17}' for cell in header)
        for row in rows():
            if row.regime == regime:
                yield f'{TITLES[row.step]:<40}' + ''.join(f'{cell:>17}' for cell in cells(row))
        yield ''
    yield NOTE
    yield COUNTING_RULE
    yield f'Published: {SOURCE}.'


def cells(row: Row) -> list[str]:
    """The figures of a row: FLOPs counted, published, difference, top-1 published, parameters counted."""
    return [
        f'{row.flops / 1e9:.4f}',
        row.published_gflops + (' (*)' if row.is_slipped else ''),
        f'{row.difference:+.4f}',
        row.published_top1,
        f'{row.params:,}',
    ]


def markdown_table() -> str:
    """Both regimes side by side, for the documentation."""
    header = ['step']
    for regime in REGIMES:
        header += [f'{regime}: GFLOPs counted', 'published', 'difference', 'top-1 published', 'params counted']
    lines = [header, ['---'] * len(header)]
    for step in STEPS:
        line = [f'`{step}`']
        for row in rows():
            if row.step == step:
                line += cells(row)
        lines.append(line)
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)
