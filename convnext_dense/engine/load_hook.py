"""Whole checkpoints on their way into mmengine's runner: ``load_from``, ``--resume``, ``tools/test.py``.

A module's own load hook only ever sees names below its own prefix. Weights under ``model`` or ``student.``, and bare
ImageNet names, reach a ConvNeXt inside a detector as nothing; here they are brought below its prefix first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from convnext_dense.engine.fsdp import is_sharded, state_of, whole_parameters
from convnext_dense.errors import UserError
from convnext_dense.models.convnext import ConvNeXt
from convnext_dense.weights.dialects import WRAPPED_MODULES
from convnext_dense.weights.find import SECOND_CHOICE, choose, find_backbones, tensors_of
from convnext_dense.weights.fit import fit_state_dict
from convnext_dense.weights.safe_reading import strip_code


class ConvNeXtLoadHook(Hook):
    """Unwraps what the runner has read, for models with a ConvNeXt in them, and takes Python text out of it.

    mmengine's ``resume`` executes the text of the config that a checkpoint carries.

    Args:
        whole_model: Refuse a checkpoint that lacks tensors of the model or has them in other shapes, as a test should:
            a model with a part that is random still gives numbers. A training that is resumed always refuses.
    """

    priority = 'VERY_HIGH'  # EMAHook copies what it finds

    def __init__(self, whole_model: bool = False) -> None:
        self.whole_model = whole_model

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        strip_code(checkpoint)
        if runner._resume and not {'meta', 'message_hub'} <= checkpoint.keys():
            raise UserError(
                'the checkpoint holds no state of a training to resume: give it as load_from, without '
                '--resume, to start from its weights'
            )
        model = runner.model
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        with whole_parameters(runner.model):
            unwrap_checkpoint(model, checkpoint, self.whole_model or runner._resume)
            if is_sharded(model):
                _fit(model, checkpoint['state_dict'])


def unwrap_checkpoint(model: nn.Module, checkpoint: dict, whole_model: bool = False) -> None:
    """Put the weights of ``model`` under ``checkpoint['state_dict']``, by the names of its own state dict.

    The names inside a ConvNeXt stay as they are: its own load hook translates and checks them.

    Raises:
        UserError: The checkpoint has no ConvNeXt, or several where one is wanted; with ``whole_model``, it lacks
            tensors of the model, whatever its backbone.
    """
    paths = [f'{name}.' if name else '' for name, module in model.named_modules() if isinstance(module, ConvNeXt)]
    if not paths:  # another model, loaded by mmengine
        if whole_model:
            state = checkpoint.get('state_dict', checkpoint)
            own, state = (
                {
                    WRAPPED_MODULES.sub('', name).removeprefix('module.'): value
                    for name, value in part.items()
                    if isinstance(value, Tensor)
                }
                for part in (model.state_dict(), state)
            )
            _check_rest(own, state, whole_model)
        return
    tensors = tensors_of(checkpoint)
    backbones = find_backbones(tensors)
    if not backbones:
        raise UserError(
            f'the checkpoint holds no ConvNeXt in a known layout, its first names are {list(tensors)[:3]}: '
            'give the checkpoint of a model with a ConvNeXt'
        )
    own = state_of(model)
    own_names = {WRAPPED_MODULES.sub('', name): name for name in own}
    places = [WRAPPED_MODULES.sub('', path) for path in paths]
    source = _root({backbone.prefix for backbone in backbones}, places)
    target = ''
    if source is None:  # a backbone without the model around it
        if len(paths) > 1:
            raise UserError(
                f'the checkpoint has a ConvNeXt at {", ".join(repr(b.prefix) for b in backbones)}, the '
                f'model has several, at {", ".join(map(repr, paths))}: give a checkpoint with these '
                'prefixes'
            )
        source, target = choose(backbones).prefix, places[0]
    state = {target + name[len(source) :]: value for name, value in tensors.items() if name.startswith(source)}
    state = OrderedDict((own_names.get(name, name), value) for name, value in state.items())
    _check_rest({name: value for name, value in own.items() if not name.startswith(tuple(paths))}, state, whole_model)
    if source == 'state_dict.' and state.keys() == checkpoint['state_dict'].keys():
        return  # as mmengine saves it
    for key in [key for key, value in checkpoint.items() if isinstance(value, Tensor) or source.startswith(f'{key}.')]:
        del checkpoint[key]
    checkpoint['state_dict'] = state


def _fit(model: nn.Module, state: dict[str, Tensor]) -> None:
    """What a ConvNeXt's own load hook does, which does not see whole tensors where the model is sharded."""
    for name, module in model.named_modules():
        if isinstance(module, ConvNeXt):
            path = WRAPPED_MODULES.sub('', f'{name}.' if name else '')
            found = {key[len(path) :]: state.pop(key) for key in list(state) if key.startswith(path)}
            fitted = fit_state_dict(module, found, place=path)
            state.update({path + key: value.clone() for key, value in fitted.items()})


def _root(prefixes: set[str], paths: list[str]) -> str | None:
    """The prefix of a whole model in the file: every ConvNeXt of the model has its place below it."""
    roots = {prefix[: len(prefix) - len(paths[0])] for prefix in prefixes if f'.{prefix}'.endswith(f'.{paths[0]}')}
    roots = {root for root in roots if all(root + path in prefixes for path in paths)}
    first = {root for root in roots if not SECOND_CHOICE.intersection(root.split('.'))} or roots
    if len(first) > 1:
        raise UserError(
            f'the checkpoint holds several models, at the prefixes {", ".join(map(repr, sorted(first)))}: '
            'give a file with one of them'
        )
    return next(iter(first), None)


def _check_rest(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor], whole_model: bool) -> None:
    """Say what the checkpoint lacks outside the ConvNeXts, which check themselves."""
    wrong = [
        name
        for name, value in wanted.items()
        if not name.endswith('.num_batches_tracked') and (name not in state or state[name].shape != value.shape)
    ]
    if not wrong:
        return
    names = f'{", ".join(wrong[:3])}{", ..." if len(wrong) > 3 else ""}'
    if whole_model:
        raise UserError(
            f'the checkpoint lacks {len(wrong)} tensors of the model, or has them in other shapes: {names}'
            '; a test and a resumed training need the whole model: give a checkpoint that belongs to this '
            'config'
        )
    print_log(
        f'{len(wrong)} tensors of the model outside the ConvNeXt are not in the checkpoint, or there in other '
        f'shapes, and start new: {names}',
        logger='current',
    )
