"""Weight files from one format into another, and what is in one: the work of ``tools/convert_checkpoint.py``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from convnext_dense.archs import TIMM_CONVOLUTIONS, variant_arguments
from convnext_dense.errors import UserError
from convnext_dense.models.convnext import ConvNeXt
from convnext_dense.models.isotropic import ConvNeXtIsotropic
from convnext_dense.models.loading import PretrainedModule
from convnext_dense.outputs import check_file_output, whole_files
from convnext_dense.weights.dialects import DIALECTS, ISOTROPIC, STAGED
from convnext_dense.weights.find import Backbone, choose, find_backbones, tensors_of
from convnext_dense.weights.fit import STEMS, arguments_of, as_written, fit_backbone
from convnext_dense.weights.known import Known
from convnext_dense.weights.safe_reading import read_file
from convnext_dense.weights.sources import METADATA_KEY, facts_of, known_as_json, read

ISOTROPIC_STEM = STEMS[ISOTROPIC]
OFFICIAL_ONLY = ('torchvision', 'hf', 'mmpretrain')  # these libraries have the official networks and no variants
CLASSES: dict[str, type[PretrainedModule]] = {STAGED: ConvNeXt, ISOTROPIC: ConvNeXtIsotropic}

# Name of the format: its dialect, and what is put around the tensors in a file of torch's own format.
TARGETS: dict[str, tuple[str, Callable[[dict], dict]]] = {
    'ours': ('official', lambda state: {'state_dict': state}),
    'official': ('official', lambda state: {'model': state}),
    'timm': ('timm', dict),
    # timm's convnext_tiny_hnf, and whatever else is built there with conv_mlp=True
    'timm_conv': ('timm', dict),
    'torchvision': ('torchvision', dict),
    'hf': ('hf', dict),
    'mmpretrain': ('mmpretrain', lambda state: {'state_dict': {f'backbone.{name}': state[name] for name in state}}),
}


def inspect(source: str, prefix: str | None = None, trust: bool = False) -> str:
    """A few lines about a weight file: format, arch, tensors, type, and what would load.

    Raises:
        UserError: The file cannot be read or has no ConvNeXt.
    """
    chosen, unused, facts = _find(source, prefix, trust)
    norms = sorted({name.split('.')[0] for name in chosen.tensors if name.startswith('norm')})
    dtypes = sorted({str(value.dtype).removeprefix('torch.') for value in chosen.tensors.values()})
    numbers = sum(value.numel() for value in chosen.tensors.values())
    try:
        verdict = fit_backbone(_model_for(chosen).wanted_weights(), chosen, unused).summary
    except UserError as error:
        verdict = f'nothing: {error}'
    rows = {
        'file': source,
        'dialect': chosen.dialect.name,
        'prefix': repr(chosen.prefix),
        'arguments': as_written(arguments_of(chosen.tensors)),
        'tensors': f'{len(chosen.tensors)} of the backbone, {numbers / 1e6:.1f} million numbers',
        'dtype': ', '.join(dtypes),
        'norms': ', '.join(norms) or 'no output norms',
        'inputs': facts.statistics.as_written() if facts.statistics else 'unknown mean and std',
        'licence': facts.licence or 'unknown, ask where the file comes from',
        'loads': verdict,
    }
    return '\n'.join(f'{title:<10} {text}' for title, text in rows.items())


def convert(
    source: str, out: Path, to: str, prefix: str | None = None, trust: bool = False, overwrite: bool = False
) -> str:
    """Write the backbone of a weight file in another format, and read it back.

    Args:
        source: As in :func:`convnext_dense.weights.sources.fetch`.
        out: The file to write: ``.safetensors``, or any other ending for torch's own format.
        to: A name in :data:`TARGETS`.
        prefix: Which ConvNeXt, where the file has several.
        trust: Let a pickle run code.
        overwrite: Replace ``out`` if it exists.

    Returns:
        A few lines about what was done.

    Raises:
        UserError: The file does not load completely, the format cannot hold it, or ``out`` cannot be written, is
            ``source`` or exists.
    """
    check_file_output(out, inputs=[source], overwrite=overwrite)
    chosen, unused, facts = _find(source, prefix, trust)
    summary = fit_backbone(_model_for(chosen).wanted_weights(), chosen, unused).summary
    _check_target(arguments_of(chosen.tensors), to)
    written, unnamed = _in_dialect(chosen.tensors, to)
    lost = [name for name in unnamed if not name.startswith('norm')]
    if lost:
        raise UserError(
            f'the {to} format has no name for {len(lost)} tensors of {source}: {", ".join(lost[:3])}: '
            'choose another format'
        )
    kept = {name: value for name, value in chosen.tensors.items() if name not in unnamed}
    _save(out, written, to, kept, facts)
    lines = [summary]
    if unnamed:
        lines.append(f'left out, the {to} format has no name for them: {", ".join(unnamed)}')
    lines.append(f'{out}: {len(written)} tensors in the {to} format, read back and equal bit by bit')
    return '\n'.join([*lines, *facts.clauses()])


def _find(source: str, prefix: str | None, trust: bool) -> tuple[Backbone, list[str], Known]:
    """The ConvNeXt to take from a file, the prefixes of other copies, and what is known about the file."""
    checkpoint = read(source, trust=trust)
    tensors = tensors_of(checkpoint)
    backbones = find_backbones(tensors)
    if not backbones:
        raise UserError(f'{source} holds no ConvNeXt in a known layout, its first names are {list(tensors)[:3]}')
    chosen = choose(backbones, prefix)
    others = [backbone.prefix for backbone in backbones if backbone is not chosen]
    return chosen, others, facts_of(source, checkpoint)


def _model_for(chosen: Backbone) -> PretrainedModule:
    """The model that the weights ask for, without memory of its own."""
    with torch.device('meta'):
        return CLASSES[chosen.dialect.family](**arguments_of(chosen.tensors))


def _check_target(arguments: dict[str, Any], to: str) -> None:
    """Raise a UserError if the libraries behind a format have no such network: only timm has its own variants."""
    beyond: dict[str, Any] = {key: arguments[key] for key in ('stem', 'norm_cfg', 'conv_bias') if key in arguments}
    if variant_arguments(arguments['arch']):
        beyond.update(arch=arguments['arch'])
    if beyond and to in OFFICIAL_ONLY:
        raise UserError(
            f'the {to} format has no ConvNeXt with {as_written(beyond)}: choose one of '
            f'{", ".join(name for name in TARGETS if name not in OFFICIAL_ONLY)}'
        )


def _in_dialect(state: dict[str, Tensor], to: str) -> tuple[dict[str, Tensor], list[str]]:
    if to == 'ours':
        return state, []
    if to == 'official' and ISOTROPIC_STEM in state:
        return state, []  # the official names are ours
    written, unnamed = next(d for d in DIALECTS if d.name == TARGETS[to][0]).write(state)
    if to == 'timm_conv' or (to == 'timm' and _is_convolutional_in_timm(arguments_of(state)['arch'])):
        written = {
            name: value[:, :, None, None] if '.mlp.fc' in name and value.ndim == 2 else value
            for name, value in written.items()
        }
    return written, unnamed


def _is_convolutional_in_timm(arch: str | dict) -> bool:
    return isinstance(arch, str) and arch.split('_')[0] in TIMM_CONVOLUTIONS


def _save(out: Path, written: dict[str, Tensor], to: str, expected: dict[str, Tensor], facts: Known) -> None:
    """Write beside ``out``, read back as a user will, compare bit by bit, then put it in its place.

    What is known about the weights goes along where the format has a place for it.
    """
    written = {name: value.contiguous() for name, value in written.items()}
    with whole_files(out) as new:
        if out.suffix == '.safetensors':
            from safetensors.torch import save_file

            save_file(written, new, None if facts == Known() else {METADATA_KEY: known_as_json(facts)})
        else:
            checkpoint = TARGETS[to][1](written)
            if to == 'ours' and facts != Known():
                checkpoint['meta'] = {METADATA_KEY: known_as_json(facts)}
            torch.save(checkpoint, new)
        found = choose(find_backbones(tensors_of(read_file(new)))).tensors
        wrong = [name for name, value in expected.items() if not _equal_bit_by_bit(found.get(name), value)]
        if wrong or len(found) != len(expected):
            raise UserError(
                f'{out} did not come back as it was written, from {(wrong or ["a surplus tensor"])[0]} on: '
                'check whether the disk is full or broken'
            )


def _equal_bit_by_bit(found: Tensor | None, expected: Tensor) -> bool:
    if found is None or found.dtype != expected.dtype or found.shape != expected.shape:
        return False
    return torch.equal(found.contiguous().view(torch.uint8), expected.contiguous().view(torch.uint8))
