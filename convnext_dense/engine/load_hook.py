"""Whole checkpoints on their way into mmengine's runner: ``load_from``, ``--resume``, ``tools/test.py``.

A module's own load hook only ever sees names below its own prefix. Weights under ``model`` or ``student.``, and bare
ImageNet names, reach a ConvNeXt inside a detector as nothing. Here they are brought below its prefix, in its names and
layouts, whether the model is sharded or not.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from convnext_dense.engine.fsdp import is_sharded, state_of, whole_parameters
from convnext_dense.engine.statistics import check_statistics
from convnext_dense.engine.training_state import check_optimizer_fits, check_schedules_fit, check_training_state
from convnext_dense.errors import UserError
from convnext_dense.models.loading import FITTED, PretrainedModule
from convnext_dense.weights.dialects import WRAPPED_MODULES
from convnext_dense.weights.find import Backbone, choose, find_backbones, is_second_choice, tensors_of
from convnext_dense.weights.fit import fit_backbone
from convnext_dense.weights.known import Known
from convnext_dense.weights.safe_reading import strip_code
from convnext_dense.weights.sources import SCHEME, facts_of


class ConvNeXtLoadHook(Hook):
    """Fit what the runner has read to a model with a ConvNeXt in it, and take Python text out of the checkpoint.

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
        model = runner.model
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        with whole_parameters(runner.model):
            fit_checkpoint(model, checkpoint, self.whole_model or runner._resume)
        source = str(runner._load_from or '').removeprefix(SCHEME)
        if runner._resume:
            check_training_state(checkpoint, source, bool(getattr(runner, 'param_schedulers', None)))
            check_schedules_fit(checkpoint, getattr(runner, 'param_schedulers', None), source)
            if isinstance(runner.optim_wrapper, OptimWrapper) and not is_sharded(runner.model):
                check_optimizer_fits(runner.optim_wrapper.optimizer, checkpoint['optimizer'], source)
        facts = facts_of(source, checkpoint) if source else Known()
        for module in model.modules():
            if isinstance(module, PretrainedModule) and facts != Known():
                module.take_facts(source, facts)
        check_statistics(model)

    def before_train(self, runner: Runner) -> None:
        check_statistics(runner.model)


def attach_load_hook(runner: Runner, whole_model: bool) -> None:
    """Make sure that a runner has exactly one :class:`ConvNeXtLoadHook`, whether its config names one or not.

    Args:
        runner: Its hooks are those of its config.
        whole_model: As in :class:`ConvNeXtLoadHook`; a hook of the config that is stricter stays so.
    """
    for hook in runner.hooks:
        if isinstance(hook, ConvNeXtLoadHook):
            hook.whole_model = hook.whole_model or whole_model
            return
    runner.register_hook(ConvNeXtLoadHook(whole_model))


def fit_checkpoint(model: nn.Module, checkpoint: dict, whole_model: bool = False) -> None:
    """Put the weights of ``model`` under ``checkpoint['state_dict']``, by the names of its own state dict.

    Args:
        model: A model with any number of ConvNeXts in it; a sharded one inside ``whole_parameters``.
        checkpoint: Changed in place.
        whole_model: Refuse a checkpoint that lacks tensors of the model, whatever its backbone.

    Raises:
        UserError: The checkpoint has no ConvNeXt, or several where one is wanted, or its ConvNeXts do not fit; with
            ``whole_model``, it lacks tensors of the model.
    """
    convnexts = {}  # by their places in the model without wrappers around its parts
    paths = {}  # of these, with wrappers
    for path, module in model.named_modules():
        if isinstance(module, PretrainedModule):
            place = WRAPPED_MODULES.sub('', f'{path}.' if path else '')
            convnexts[place], paths[place] = module, path
    if not paths:  # another model, loaded by mmengine
        if whole_model:
            _check_model_without_convnext(model, checkpoint)
        return

    tensors = tensors_of(checkpoint)
    backbones = {backbone.prefix: backbone for backbone in find_backbones(tensors)}
    source, target = _root(list(backbones.values()), list(paths), list(tensors))
    own = {WRAPPED_MODULES.sub('', name): (name, value) for name, value in state_of(model).items()}

    rest = {}
    for name, value in tensors.items():
        ours = target + name[len(source) :]
        if name.startswith(source) and not ours.startswith(tuple(paths)):
            rest[ours] = value
    own_rest = {name: value for name, (_, value) in own.items() if not name.startswith(tuple(paths))}
    _check_rest(own_rest, rest, whole_model)

    state = OrderedDict((own[name][0] if name in own else name, value) for name, value in rest.items())
    # Versions of layers, as mmengine saves them.
    metadata = OrderedDict(getattr(checkpoint['state_dict'], '_metadata', {}) if source == 'state_dict.' else {})
    for place, path in paths.items():
        fitted = _fit_one(convnexts[place], place, backbones[source + place[len(target) :]])
        for name, (own_name, value) in own.items():
            if name.startswith(place):
                state[own_name] = fitted.get(name[len(place) :], value.detach())
        metadata[path] = {**metadata.get(path, {}), FITTED: True}
    state._metadata = metadata  # type: ignore[attr-defined]

    for key, value in list(checkpoint.items()):
        if isinstance(value, Tensor) or source.startswith(f'{key}.'):
            del checkpoint[key]
    checkpoint['state_dict'] = state


def _fit_one(module: PretrainedModule, place: str, backbone: Backbone) -> dict[str, Tensor]:
    """The tensors for one ConvNeXt, with one line in the log."""
    # The prefix is that of the whole model: the line is the same for every way of loading.
    fitted = fit_backbone(module.wanted_weights(place), replace(backbone, prefix=''))
    print_log(fitted.summary, logger='current')
    if is_sharded(module):
        # FSDP cuts its shards out of these, and some of them are views of one storage.
        return {name: value.clone() for name, value in fitted.tensors.items()}
    return fitted.tensors


def _root(backbones: list[Backbone], places: list[str], names: list[str]) -> tuple[str, str]:
    """Where the model is in the file, and where in the model what is there belongs.

    Returns:
        The prefix of a whole model in the file and ``''``; or, for a backbone without the model around it, the prefix
        of the backbone and its place in the model.

    Raises:
        UserError: There is no ConvNeXt in the file, or it is not clear which one to take.
    """
    if not backbones:
        raise UserError(
            f'the checkpoint holds no ConvNeXt in a known layout, its first names are {names[:3]}: '
            'give the checkpoint of a model with a ConvNeXt'
        )
    prefixes = {backbone.prefix for backbone in backbones}
    roots = []
    for prefix in sorted(prefixes):
        if not f'.{prefix}'.endswith(f'.{places[0]}'):
            continue
        root = prefix[: len(prefix) - len(places[0])]
        if all(root + place in prefixes for place in places):
            roots.append(root)
    first = [root for root in roots if not is_second_choice(root)] or roots
    if len(first) > 1:
        raise UserError(
            f'the checkpoint holds several models, at the prefixes {", ".join(map(repr, first))}: '
            'give a file with one of them'
        )
    if first:
        return first[0], ''
    if len(places) > 1:
        raise UserError(
            f'the checkpoint has a ConvNeXt at {", ".join(map(repr, sorted(prefixes)))}, the model has several, at '
            f'{", ".join(map(repr, places))}: give a checkpoint with these prefixes'
        )
    return choose(backbones).prefix, places[0]


def _check_model_without_convnext(model: nn.Module, checkpoint: dict) -> None:
    own = {WRAPPED_MODULES.sub('', name): value for name, value in model.state_dict().items()}
    state = {}
    for name, value in checkpoint.get('state_dict', checkpoint).items():
        if isinstance(value, Tensor):
            state[WRAPPED_MODULES.sub('', name).removeprefix('module.')] = value
    _check_rest(own, state, whole_model=True)


def _check_rest(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor], whole_model: bool) -> None:
    """Say what the checkpoint lacks outside the ConvNeXts, which are checked by themselves."""
    wrong = []
    for name, value in wanted.items():
        if name.endswith('.num_batches_tracked') or not isinstance(value, Tensor):
            continue
        if name not in state or state[name].shape != value.shape:
            wrong.append(name)
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
