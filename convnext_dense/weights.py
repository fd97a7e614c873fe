"""Weights into a ConvNeXt: completely, or with an error that says what does not fit."""
from __future__ import annotations

import pickle
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer, print_log
from torch import Tensor

from .errors import UserError

if TYPE_CHECKING:
    from .backbone import ConvNeXt

# The file around the weights: official ImageNet files are {'model': ...}, mmengine's {'state_dict': ...}.
WRAPPERS = ('model', 'state_dict')
# Final norm and classifier of ImageNet files.
NOT_BACKBONE = re.compile(r'norm\.(weight|bias)|head\.(weight|bias)')


def allow_mmengine_checkpoints() -> None:
    """Let torch's safe loading (``weights_only=True``) read what mmengine's runner stores: its log history.

    mmengine 0.10.7 cannot resume on torch >= 2.6 without it. Nothing on this list can run code of the file.
    """
    if not hasattr(torch.serialization, 'add_safe_globals'):  # torch < 2.4 has no safe loading to extend
        return
    array, scalar = (value.__reduce__()[0] for value in (np.empty(0), np.float64(0)))
    kinds = (bool, np.float16, np.float32, np.float64, np.int8, np.uint8, np.int32, np.int64, str)
    torch.serialization.add_safe_globals([
        HistoryBuffer, (_history_method, 'builtins.getattr'), np.ndarray, np.dtype,
        *{type(np.dtype(kind)) for kind in kinds},
        # numpy 2 renamed the module; files name the one or the other.
        *((function, f'numpy.{module}.multiarray.{name}') for module in ('core', '_core')
          for function, name in ((array, '_reconstruct'), (scalar, 'scalar')))])


def _history_method(owner: type, name: str) -> Any:
    """Stands for ``getattr`` in a checkpoint, where mmengine's log names its statistics by it."""
    if owner is HistoryBuffer and name in ('min', 'max', 'current', 'mean'):
        return getattr(HistoryBuffer, name)
    raise pickle.UnpicklingError(f'the attribute {name!r} of {owner!r} is not part of a checkpoint')


@contextmanager
def loading_errors(init_cfg: Any) -> Iterator[None]:
    """Turn the failures of reading the file that ``init_cfg`` names into one sentence."""
    configs = init_cfg if isinstance(init_cfg, (list, tuple)) else [init_cfg]
    source = ', '.join(str(cfg['checkpoint']) for cfg in configs if cfg and 'checkpoint' in cfg)
    way_out = ('give a file that exists as model.backbone.init_cfg.checkpoint, or train from scratch with '
               '--cfg-options model.backbone.init_cfg=None')
    try:
        yield
    except UserError as error:
        raise UserError(f'{source}: {error}') from error
    except OSError as error:  # URLError and HTTPError are OSErrors
        raise UserError(f'the pretrained weights {source} could not be read ({error}): {way_out}') from error
    except (pickle.UnpicklingError, EOFError) as error:
        reason = str(error).splitlines()[0] if str(error) else 'the file ends early'
        raise UserError(f'the pretrained weights {source} are no file of plain tensors ({reason}): {way_out}') \
            from error


def fit_state_dict(model: ConvNeXt, found: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state dict of ``model`` out of weights in the official layout.

    Args:
        model: The module to fill; its tensors say what is wanted.
        found: Weights named as in the official files, bare or under ``'model'`` / ``'state_dict'``. Classifier and
            final norm are dropped, so are stages and norms that ``out_indices`` leaves out.

    Returns:
        One tensor for each of ``model``; output norms that ``found`` lacks keep their present values.

    Raises:
        UserError: A tensor other than the output norms has no match, or a shape differs.
    """
    for wrapper in WRAPPERS:
        if isinstance(found.get(wrapper), Mapping):
            found = found[wrapper]
    wanted = dict(model.named_parameters())
    given = {}
    for name, value in found.items():
        stage = re.match(r'(?:stages\.|downsample_layers\.|norm)(\d)\b', name)
        left_out = stage and name not in wanted and (
            int(stage[1]) not in model.out_indices if name.startswith('norm') else int(stage[1]) >= len(model.stages))
        if NOT_BACKBONE.fullmatch(name) or left_out:
            continue
        if '.grn.' in name and isinstance(value, Tensor):
            value = value.flatten()  # (1, 1, 1, C) in the official V2 files -> (C)
        given[name] = value

    new = [name for name in wanted if name not in given and re.match(r'norm\d\.', name)]
    missing = [name for name in wanted if name not in given and name not in new]
    unknown = [name for name in given if name not in wanted]
    differing = [f'{name} {tuple(given[name].shape)} for {tuple(wanted[name].shape)}' for name in given
                 if name in wanted and given[name].shape != wanted[name].shape]
    if missing or unknown or differing:
        raise UserError('these weights do not fit the ConvNeXt' + ''.join(
            f'; {len(names)} {what}: {", ".join(names[:3])}{", ..." if len(names) > 3 else ""}'
            for what, names in (('tensors of the model are not in the file', missing),
                                ('tensors of the file are not in the model', unknown),
                                ('shapes differ', differing)) if names) + _describe(model, given))

    norms = sorted({name.split('.')[0] for name in new})
    print_log(f'ConvNeXt: {len(given)} of {len(wanted) - len(new)} tensors loaded'
              + (f'; {", ".join(norms)} start new, as they must for ImageNet weights' if norms else ''),
              logger='current')
    return {**given, **{name: wanted[name].detach() for name in new}}


def _describe(model: ConvNeXt, given: Mapping[str, Any]) -> str:
    """What the file looks like beside what the model is, for an error message."""
    from .backbone import ARCHS  # backbone.py imports this module

    def name_of(depths: tuple[int, ...], channels: tuple[int, ...]) -> str:
        names = [name for name, arch in ARCHS.items() if (arch['depths'], arch['channels']) == (depths, channels)]
        return f'arch={names[0]!r}' if names else f'depths={list(depths)}, channels={list(channels)}'

    blocks = [re.match(r'stages\.(\d)\.(\d+)\.dwconv\.weight', name) for name in given]
    blocks = {(int(match[1]), int(match[2])): match.string for match in blocks if match}
    if not blocks:
        return (': it holds no ConvNeXt in the official layout under the names that reached the backbone; its first '
                f'names are {list(given)[:3]}')
    stages = sorted({stage for stage, _ in blocks})
    depths = tuple(sum(stage == s for stage, _ in blocks) for s in stages)
    channels = tuple(given[blocks[s, min(b for stage, b in blocks if stage == s)]].shape[0] for s in stages)
    return (f': the file looks like {name_of(depths, channels)}, the model is {name_of(model.depths, model.channels)}; '
            'change the arch of the backbone or give the file that belongs to it')
