"""Plan how ConvNeXt takes the place of one backbone: from what is found to the config values to change.

The old backbone and its neck are run, which says what the rest of the model receives: channels and strides. Gradients
say which features necks and heads use. The stages of ConvNeXt then take the places of the features with the same
strides, and the channels of all consumers follow. The new backbone and neck are run as well: consumers that would
receive other strides than before are an error, never a plan.
"""

from __future__ import annotations

from dataclasses import dataclass

from convnext_dense.archs import NUM_STAGES
from convnext_dense.swap.backbone import SwapRequest, new_backbone, pretrained_source
from convnext_dense.swap.config_tree import Change
from convnext_dense.swap.observe import observe
from convnext_dense.swap.sites import Site
from convnext_dense.swap.wiring import makes_needless_pyramid, wire_through_neck, wire_to_heads


@dataclass(frozen=True)
class SitePlan:
    """What to change for one site.

    Attributes:
        site: The backbone and its consumers, as they were found.
        arch: Of the ConvNeXt.
        was_convnext: A ConvNeXt was there.
        keeps_arch: It had the same arch.
        keeps_weights: The backbone loads the weights that it loaded before.
        kept_weights: The source of these; empty if there is none.
        changes: Config values; their paths begin at the model.
        has_unused_features: Some outputs of the backbone get no gradient.
        old_parameters, new_parameters: Names in the model of the parameters of the backbone, before and after.
        notes: For the user.
    """

    site: Site
    arch: str | dict
    was_convnext: bool
    keeps_arch: bool
    keeps_weights: bool
    kept_weights: str
    changes: tuple[Change, ...]
    has_unused_features: bool
    old_parameters: tuple[str, ...]
    new_parameters: tuple[str, ...]
    notes: tuple[str, ...]


def plan_site(site: Site, request: SwapRequest) -> SitePlan:
    """Plan the swap of one backbone.

    The old neck and the new one are each run once; the backbones once in training and once in testing, which have to
    agree. Two cases need more: a neck that fails on small features is run on larger ones, and a neck that turns out to
    need the features that it ignores is built once more with all of them.

    Args:
        site: What to swap.
        request: What the user wants.

    Raises:
        UserError: ConvNeXt cannot take the place of this backbone.
    """
    found = observe(site, request.scope)
    new = new_backbone(site, found, request)
    notes = []
    frozen = site.backbone.get('frozen_stages', -1)
    if not found.was_convnext and isinstance(frozen, int) and frozen > 0:
        notes.append(
            f'frozen_stages={frozen} of {site.place} was for the old backbone, ConvNeXt trains all stages: '
            f'model.{site.place}.frozen_stages={min(frozen, NUM_STAGES)} freezes as many'
        )
    if site.neck is None:
        wiring = wire_to_heads(site, new, found, found.backbone.features)
    elif found.neck and makes_needless_pyramid(found):
        notes.append(
            f'{site.neck_type} made a pyramid of features that all had one stride; ConvNeXt is a pyramid: removed'
        )
        wiring = wire_to_heads(site, new, found, found.neck.outputs)
    else:
        if found.neck is None:
            notes.append(
                f'{site.neck_type} could not be run here: its channels were rewritten by value and not checked'
            )
        wiring = wire_through_neck(site, new, found)
    notes += wiring.notes
    if wiring.has_unused_features:
        notes.append(
            f'features of {site.place} are taken but not used, as before: '
            'find_unused_parameters=True, or several GPUs would stop at their norms'
        )
    return SitePlan(
        site=site,
        arch=new.arch,
        was_convnext=found.was_convnext,
        keeps_arch=new.keeps_arch,
        keeps_weights=new.keeps_weights,
        kept_weights=pretrained_source(new.arguments.get('init_cfg')) if new.keeps_weights else '',
        changes=(Change(site.path, wiring.fit.backbone), *wiring.changes),
        has_unused_features=wiring.has_unused_features,
        old_parameters=tuple(f'{site.place}.{name}' for name in found.backbone.parameter_names),
        new_parameters=tuple(f'{site.place}.{name}' for name in wiring.fit.parameter_names),
        notes=tuple(notes),
    )
