"""See what is at a site: run its backbone and neck, and find the features that its heads take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmengine.config import ConfigDict

from convnext_dense.swap.config_tree import arguments_of
from convnext_dense.swap.consumers import SEGMENTATION_HEADS, feature_indices
from convnext_dense.swap.probe import (
    CLASSIFIERS,
    CONVNEXTS,
    LARGER_IMAGE_SIZE,
    BackboneRun,
    Feature,
    ModuleRun,
    is_our_convnext,
    run_backbone,
    try_module,
)
from convnext_dense.swap.sites import Head, Site


@dataclass(frozen=True)
class HeadInputs:
    """The features that heads take.

    Attributes:
        taken: For each head the positions of its features.
        used: Positions of those on which the output of any head depends.
    """

    taken: tuple[tuple[int, ...], ...]
    used: frozenset[int]

    @property
    def all_taken(self) -> list[int]:
        """Positions of the features that any head takes, ascending."""
        return sorted({index for indices in self.taken for index in indices})


@dataclass(frozen=True)
class Found:
    """What was seen at a site.

    Attributes:
        was_convnext: Its backbone is a ConvNeXt, ours or that of mmpretrain.
        backbone: Run of the old backbone.
        neck: Run of the old neck; None if there is none, or it cannot be run on features alone.
        inputs: What the heads take of the backbone, or of the neck; nothing if the neck could not be run.
    """

    was_convnext: bool
    backbone: BackboneRun
    neck: ModuleRun | None
    inputs: HeadInputs


def observe(site: Site, scope: str) -> Found:
    """Run the old backbone and its neck, on larger images if the neck needs them, such as that of SSD."""
    is_theirs = site.backbone.type in CONVNEXTS or (scope in CLASSIFIERS and site.backbone.type == 'ConvNeXt')
    was_convnext = is_theirs or is_our_convnext(site.backbone)
    backbone = site.backbone
    if is_theirs:
        # Our class knows the arguments of theirs: this works without mmpretrain.
        backbone = ConfigDict(arguments_of(site.backbone), type='mmengine.ConvNeXt')
    run = run_backbone(backbone)
    if site.neck is None:
        return Found(was_convnext, run, None, inputs_of_heads(site.heads, run.features))
    neck_run = try_module(site.neck, run.features)
    if neck_run is None:
        larger_run = run_backbone(backbone, LARGER_IMAGE_SIZE)
        neck_run = try_module(site.neck, larger_run.features)
        if neck_run is not None:
            run = larger_run
    inputs = inputs_of_heads(site.heads, neck_run.outputs) if neck_run else HeadInputs((), frozenset())
    return Found(was_convnext, run, neck_run, inputs)


def inputs_of_heads(heads: Sequence[Head], features: Sequence[Feature]) -> HeadInputs:
    """Find the features that each head takes: those that it names, and those that its gradients reach."""
    taken = []
    used: set[int] = set()
    previous = None  # output of the decode head before, in a list of them
    for head in heads:
        indices, run = list(range(len(features))), None
        if head.name in SEGMENTATION_HEADS:
            follows_another = head.name == 'decode_head' and head.number > 0
            if not follows_another:
                run = try_module(head.config, features)
            elif previous:
                run = try_module(head.config, features, previous)
            if head.name == 'decode_head':
                previous = run.outputs[0] if run else None
            named = feature_indices(head.config, len(features))
            if run:
                indices = sorted({*run.used, *named})
            elif named:
                indices = sorted(named)
            elif isinstance(head.config.get('in_channels'), int):
                indices = [len(features) - 1]
        taken.append(tuple(indices))
        used.update(run.used if run else indices)
    return HeadInputs(tuple(taken), frozenset(used))
