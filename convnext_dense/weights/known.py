"""What is known about published weights by their names: input statistics, licence, and arguments of the model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from convnext_dense.archs import TIMM_MODELS

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Statistics:
    """What was subtracted from images in RGB, 0 to 255, and what they were divided by.

    Attributes:
        name: Where the numbers come from.
        mean, std: Of red, green and blue.
    """

    name: str
    mean: Triple
    std: Triple

    def agrees(self, mean: Sequence[float], std: Sequence[float]) -> bool:
        """Whether other numbers are these, up to a rounding of less than one grey level."""
        pairs = [*zip(self.mean, mean, strict=True), *zip(self.std, std, strict=True)]
        return all(abs(ours - theirs) < 1 for ours, theirs in pairs)

    def as_written(self) -> str:
        """Return the numbers as they stand in a config."""
        return f'mean={[round(value, 3) for value in self.mean]}, std={[round(value, 3) for value in self.std]}'


def _scaled(mean: Sequence[float], std: Sequence[float], name: str) -> Statistics:
    """Of images between 0 and 1."""
    red, green, blue = (value * 255 for value in mean)
    std_red, std_green, std_blue = (value * 255 for value in std)
    return Statistics(name, (red, green, blue), (std_red, std_green, std_blue))


# As mmdet and mmseg write them.
IMAGENET = Statistics('ImageNet', (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
# timm.data.constants: OPENAI_CLIP_MEAN, OPENAI_CLIP_STD.
CLIP = _scaled((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711), 'CLIP')
HALF = _scaled((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 'half')
STATISTICS = {statistics.name: statistics for statistics in (IMAGENET, CLIP, HALF)}

NON_COMMERCIAL = 'not for commercial use'
# By timm's names of them.
LICENCES = {
    'mit': 'MIT',
    'apache-2.0': 'Apache 2.0',
    'cc-by-nc-4.0': f'CC BY-NC 4.0, {NON_COMMERCIAL}',
    'dinov3-license': 'DINOv3 License, whose terms go with the weights and with what is made of them',
    'fair-noncommercial-research-license': f'FAIR Noncommercial Research License, {NON_COMMERCIAL}',
}


@dataclass(frozen=True)
class Known:
    """Facts about weights.

    Attributes:
        statistics: Of the inputs that they were trained with.
        licence: In one clause; empty where it is not known.
        arguments: Of the ConvNeXt that they belong to, as far as known.
    """

    statistics: Statistics | None = None
    licence: str = ''
    arguments: dict[str, Any] | None = None

    def clauses(self) -> list[str]:
        """Return what the line about a load says of them."""
        clauses = [f'input statistics of these weights: {self.statistics.name}'] if self.statistics else []
        return [*clauses, f'licence of these weights: {self.licence}'] if self.licence else clauses


@cache
def official_files() -> dict[str, str]:
    """URLs of the official weight files by their short names."""
    return {Path(urlsplit(line).path).stem: line for line in _lines('official_weights.txt')}


@cache
def timm_weights() -> dict[str, Known]:
    """What is known about each weight tag of timm, by ``model.tag``."""
    known = {}
    for line in _lines('timm_weights.txt'):
        name, statistics, licence = line.split()[:3]
        known[name] = Known(STATISTICS[statistics], LICENCES[licence], TIMM_MODELS[name.split('.')[0]])
    return known


@cache
def _timm_files() -> dict[str, str]:
    """Tags of timm by the names of their files outside the hub."""
    rows = [line.split() for line in _lines('timm_weights.txt')]
    return {_without_ending(row[3]): row[0] for row in rows if len(row) > 3}


def default_tag(model: str) -> str | None:
    """The full name of the weights that timm takes for a model without a tag; None if it has none."""
    return next((name for name in timm_weights() if name.split('.')[0] == model), None)


def _lines(file: str) -> list[str]:
    lines = Path(__file__).with_name(file).read_text().split('\n')
    return [line for line in lines if line and not line.startswith('#')]


SIZES = {'t': 'tiny', 's': 'small', 'b': 'base', 'l': 'large'}
# Names in hubs and of files. (?P<arch>) is the arch, or its first letter.
PATTERNS: tuple[tuple[str, Statistics, str], ...] = (
    # facebook/dinov3-convnext-tiny-pretrain-lvd1689m, dinov3_convnext_tiny_pretrain_lvd1689m-21b726bb.pth
    (r'dinov3[-_]convnext[-_](?P<arch>tiny|small|base|large)[-_]pretrain[-_]lvd1689m', IMAGENET, 'dinov3-license'),
    # facebook/EUPE-ConvNeXt-T, EUPE-ConvNeXt-T.pt
    (r'eupe[-_]convnext[-_](?P<arch>tiny|small|base|t|s|b)', IMAGENET, 'fair-noncommercial-research-license'),
    # laion/CLIP-convnext_base_w-laion2B-s13B-b82K and the like; licence: their model cards.
    (r'clip-convnext_(?P<arch>base|large|xxlarge)(_w|_d)?(_320)?[-.]laion.*', CLIP, 'mit'),
    # facebook/convnext-tiny-224, facebook/convnextv2-tiny-1k-224
    (r'convnext-(?P<arch>tiny|small|base|large|xlarge)-\d+(-22k)?(-1k)?', IMAGENET, ''),
    (r'convnextv2-(?P<arch>atto|femto|pico|nano|tiny|base|large|huge)-(1k|22k)-\d+', IMAGENET, ''),
)


def known_weights(source: str) -> Known:
    """Look weights up by their name; everything is unknown where it is not one of the published.

    Args:
        source: As in :func:`convnext_dense.weights.sources.fetch`.
    """
    kind, _, rest = source.partition(':')
    name = _without_ending(source)
    if kind == 'timm':
        name = rest if '.' in rest else default_tag(rest) or rest
    elif kind == 'hf-hub':
        name = rest.split('/')[-1]
    name = _timm_files().get(name, name)
    if name in timm_weights():
        return timm_weights()[name]
    if name in official_files():
        return Known(IMAGENET, LICENCES['cc-by-nc-4.0' if 'convnextv2' in name else 'mit'])
    for pattern, statistics, licence in PATTERNS:
        match = re.fullmatch(pattern, re.sub(r'-[0-9a-f]{8}$', '', name), re.IGNORECASE)
        if match:
            arch = match['arch'].lower()
            arguments = TIMM_MODELS[f'{"convnextv2" if "v2" in pattern else "convnext"}_{SIZES.get(arch, arch)}']
            return Known(statistics, LICENCES.get(licence, ''), arguments)
    return Known()


def _without_ending(source: str) -> str:
    """The last part of a path or address without the ending of a weight file."""
    return re.sub(r'\.(pth|pt|bin|safetensors)$', '', urlsplit(source).path.split('/')[-1])
