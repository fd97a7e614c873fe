"""What the weights for a swapped backbone say about it: by their name, or by the file where it is here."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convnext_dense.archs import ARCHS, resolve_arch
from convnext_dense.errors import UserError
from convnext_dense.weights.dialects import STAGED
from convnext_dense.weights.find import choose, find_backbones, tensors_of
from convnext_dense.weights.fit import arguments_of, as_written
from convnext_dense.weights.known import known_weights, official_files
from convnext_dense.weights.sources import check_source, local_file, read

ADAPTED = ('in_channels',)  # the stem is adapted to the images of the config


def arguments_for(weights: str, arch: str | dict | None) -> tuple[dict[str, Any], list[str]]:
    """Return the arguments of the ConvNeXt that weights belong to, as far as known, and notes.

    Args:
        weights: A source, see :func:`convnext_dense.weights.sources.fetch`.
        arch: What the user asks for; None leaves it to the weights.

    Raises:
        UserError: There are no such weights, they are of another kind of network, or of another arch than ``arch``.
    """
    _check_exists(weights)
    found = _arguments_in_file(weights) if local_file(weights) else _arguments_by_name(weights)
    if found is None:
        return {}, [f'{weights} was not looked at: it has to fit arch={arch or "tiny"!r}, which loading it checks']
    arguments = {key: value for key, value in found.items() if key not in ADAPTED}
    if arch is not None and 'arch' in found and resolve_arch(arch) != resolve_arch(found['arch']):
        raise UserError(
            f'{weights} belongs to {as_written({"arch": found["arch"]})}, found {as_written({"arch": arch})}: leave '
            'out --arch, or give weights of that arch'
        )
    return arguments, []


def _check_exists(weights: str) -> None:
    try:
        check_source(weights, 'weight')
    except UserError as error:
        name = Path(weights).stem
        near = [known for known in official_files() if known.startswith(name)]
        near = near or difflib.get_close_matches(name, official_files(), n=1, cutoff=0.8)
        if not near:
            raise
        raise UserError(f'there are no weights {weights}: did you mean the official file {near[0]}?') from error


def _arguments_in_file(weights: str) -> dict[str, Any]:
    backbones = find_backbones(tensors_of(read(weights)))
    if not backbones:
        raise UserError(f'{weights} holds no ConvNeXt in a known layout: give the file of a ConvNeXt')
    chosen = choose(backbones)
    if chosen.dialect.family != STAGED:
        raise UserError(f'{weights} holds a {chosen.dialect.family}, a {STAGED} is put in: give the file of a {STAGED}')
    found = arguments_of(chosen.tensors)
    # Other values are those that ConvNeXt has anyway; the initial value of a layer scale is replaced by the file's.
    official: Mapping[str, Any] = dict(use_grn=False, stem_patch_size=4, kernel_size=7)
    found = {key: value for key, value in found.items() if key not in official or value != official[key]}
    if found.get('layer_scale_init_value'):
        del found['layer_scale_init_value']
    return found


def _arguments_by_name(weights: str) -> dict[str, Any] | None:
    arguments = known_weights(weights).arguments
    if arguments is not None:
        return dict(arguments)
    name = re.search(r'convnext(v2)?_([a-z]+)_', Path(weights).name) if weights in official_files() else None
    if name is None or name[2] not in ARCHS:
        return None
    return dict(arch=name[2], **(dict(use_grn=True, layer_scale_init_value=0) if name[1] else {}))
