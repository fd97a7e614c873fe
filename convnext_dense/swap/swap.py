"""Put ConvNeXt under an existing mmdet or mmseg pipeline: find, plan, apply, prove."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config
from mmengine.registry import DefaultScope

from convnext_dense.archs import resolve_arch
from convnext_dense.errors import UserError
from convnext_dense.swap.backbone import SwapRequest
from convnext_dense.swap.config_tree import Change, with_changes
from convnext_dense.swap.files import read_config
from convnext_dense.swap.formatting import error_summary
from convnext_dense.swap.optimizer import optimizer_changes
from convnext_dense.swap.plan import plan_site
from convnext_dense.swap.probe import import_models, parameter_names
from convnext_dense.swap.settings import import_changes, input_statistics, old_weights_changes, preprocessing_changes
from convnext_dense.swap.sites import find_sites
from convnext_dense.swap.weights import arguments_for


@dataclass(frozen=True)
class SwappedConfig:
    """A config whose backbones were swapped.

    Attributes:
        source: Where the config before was read from; None if it was made in Python.
        before, after: The config without and with our backbone.
        notes: What a reader of the changes should know.
    """

    source: str | Path | None
    before: Config
    after: Config
    notes: tuple[str, ...]


def swap_backbone(
    cfg: Config | str | Path, arch: str | dict | None = None, weights: str | None = None, recipe: bool = False
) -> Config:
    """Return a copy of a config in which every backbone is a ConvNeXt.

    Args:
        cfg: A config of mmdet, mmseg or another toolkit on mmengine, its path, or ``'mmdet::...'``.
        arch: Of our ConvNeXt; None is that of the weights, of a ConvNeXt that is there already, or ``'tiny'``.
        weights: For the backbone, from every source of ``init_cfg``, see the guide to weights. Their name or file says
            arch, GRN and stem.
        recipe: Also set AdamW, layer decay, drop path and mixed precision as the official recipes do.

    Returns:
        A new config; the one given is left as it is.

    Raises:
        UserError: This model cannot have another backbone; says why.
    """
    return swap_config(cfg, arch, weights, recipe).after


def swap_config(
    cfg: Config | str | Path, arch: str | dict | None = None, weights: str | None = None, recipe: bool = False
) -> SwappedConfig:
    """Do as :func:`swap_backbone`, and return the config before and notes as well.

    The new backbone, neck and segmentation heads are run while they are planned, and the whole model is built: what is
    returned works here. :func:`~convnext_dense.swap.files.write_config` proves what it writes by reading it back.

    Args:
        cfg, arch, weights, recipe: As of :func:`swap_backbone`.

    Raises:
        UserError: As :func:`swap_backbone`.
    """
    source = cfg if isinstance(cfg, (str, Path)) else cfg.filename
    before = cfg if isinstance(cfg, Config) else read_config(cfg)
    if arch is not None:
        resolve_arch(arch)
    _check_model(before, source)
    weights_arguments, weights_notes = arguments_for(weights, arch) if weights else ({}, [])
    request = SwapRequest(
        arch=arch,
        weights=weights,
        weights_arguments=weights_arguments,
        recipe=recipe,
        segmentation='decode_head' in before.model,
        scope=before.get('default_scope') or 'mmengine',
    )
    import_models(request.scope, before)
    with DefaultScope.overwrite_default_scope(request.scope):
        # Find the backbones.
        sites = find_sites(before.model)

        # Plan their swap, and what follows from it.
        plans = [plan_site(site, request) for site in sites]
        changes = [change.below(('model',)) for plan in plans for change in plan.changes]
        if any(plan.has_unused_features for plan in plans):
            changes.append(Change(('find_unused_parameters',), True))
        preprocessing, preprocessing_notes = preprocessing_changes(before, input_statistics(plans, weights))
        old_weights, old_weights_notes = old_weights_changes(before, plans, weights)

        # Apply it, and build the model.
        with_convnext = with_changes(before, [*changes, *preprocessing, *old_weights])
        with_convnext = with_changes(with_convnext, import_changes(with_convnext))
        names, build_notes = _names_of_parameters(before, with_convnext)

        # The optimizer may name parameters of the model.
        optimizer, optimizer_notes = optimizer_changes(with_convnext, plans, request, names)
        after = with_changes(with_convnext, optimizer)
    site_notes = [note for plan in plans for note in plan.notes]
    notes = (*weights_notes, *site_notes, *preprocessing_notes, *old_weights_notes, *build_notes, *optimizer_notes)
    return SwappedConfig(source, before, after, notes)


def _check_model(cfg: Config, source: str | Path | None) -> None:
    """Raise a UserError if a config has no model, or one of Python objects."""
    if 'model' not in cfg:
        raise UserError(f'{source} holds no model: give a config that trains one')
    if not isinstance(cfg.model, dict) or not isinstance(cfg.model.get('type'), str):
        raise UserError(
            f'{source} is a new-style config, whose types are Python objects: give one with '
            "types as text (Config.fromfile(...).dump('flat.py') writes it so)"
        )


def _names_of_parameters(before: Config, after: Config) -> tuple[list[str] | None, list[str]]:
    """Build the whole model.

    Returns:
        The names of its parameters, and notes; None if parts of the old model cannot be built here either.

    Raises:
        UserError: The old model can be built, the new one cannot.
    """
    if 'language_model' in after.model:
        note = 'the language model, which comes from a hub, was not built: backbone, neck and channels were checked'
        return None, [note]
    try:
        return parameter_names(after.model), []
    except Exception as error:
        try:
            parameter_names(before.model)
        except Exception as old_error:
            note = (
                'the whole model could not be built here, neither before nor after '
                f'({error_summary(old_error)}): backbone, neck and channels were checked'
            )
            return None, [note]
        raise UserError(f'{after.model.type} cannot be built around a ConvNeXt: {error_summary(error)}') from error
