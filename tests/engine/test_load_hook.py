"""Every way of loading, in every wrapper: the weights arrive, once, or an error says why not."""

import re
from collections import OrderedDict

import pytest
import torch
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from mmengine.runner import load_checkpoint, save_checkpoint
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from weights_helpers import MICRO, assert_backbone, fill, official_layout, runner_of, toy

from convnext_dense import ConvNeXt, UserError
from convnext_dense.engine import load_hook
from convnext_dense.engine.load_hook import ConvNeXtLoadHook, attach_load_hook, fit_checkpoint
from convnext_dense.weights import find, fit
from convnext_dense.weights.dialects import DIALECTS
from convnext_dense.weights.safe_reading import read_file

WRAPPERS = {
    'bare': lambda state: OrderedDict(state),
    'model': lambda state: {'model': state, 'optimizer': {'state': {}, 'param_groups': []}, 'epoch': 3},
    'state_dict': lambda state: {'state_dict': state, 'meta': {}},
    'model_ema': lambda state: {'model_ema': state},
    'module.': lambda state: {'state_dict': {f'module.{key}': value for key, value in state.items()}},
    '_orig_mod.': lambda state: {f'_orig_mod.{key}': value for key, value in state.items()},
    '_orig_mod. within': lambda state: {
        re.sub(r'^(backbone\.)?', r'\1_orig_mod.', key, count=1): value for key, value in state.items()
    },
    'student.': lambda state: {'student': {f'module.{key}': value for key, value in state.items()}},
    'teacher.': lambda state: {f'teacher.{key}': value for key, value in state.items()},
    'Lightning': lambda state: {
        'state_dict': {f'model.{key}': value for key, value in state.items()},
        'pytorch-lightning_version': '2.0',
        'global_step': 7,
    },
    'numpy': lambda state: {'model': {key: value.numpy() for key, value in state.items()}},
}


@pytest.mark.parametrize('wrapper', WRAPPERS)
@pytest.mark.parametrize(
    'way',
    [
        'init_cfg',
        'init_cfg with prefix',
        'pretrained',
        'load_state_dict',
        'load_from',
        'test',
        'resume',
        'nested at backbone.',
        'nested at model.img_backbone.',
    ],
)
def test_every_way_in(way, wrapper, tmp_path):
    state = toy(output_norms=way in ('test', 'resume'))
    if not any(name.startswith('backbone.norm0') for name in state):
        assert 'backbone.head.weight' in state  # an ImageNet file: final norm and classifier
    path = tmp_path / 'file.pth'
    checkpoint = WRAPPERS[wrapper](state)
    torch.save(checkpoint, path)
    backbone = dict(type='ConvNeXt', arch=MICRO)
    if way in ('init_cfg', 'init_cfg with prefix', 'pretrained'):
        options = (
            dict(pretrained=str(path))
            if way == 'pretrained'
            else dict(
                init_cfg=dict(
                    type='Pretrained', checkpoint=str(path), **(dict(prefix='backbone.') if 'prefix' in way else {})
                )
            )
        )
        model = MODELS.build(
            dict(
                type='ToyDetector',
                backbone=dict(backbone, **options),
                init_cfg=dict(type='Normal', layer='Conv2d', std=9.0),
            )
        )
        model.init_weights()
        assert_backbone(model, state)
    elif way == 'load_state_dict':
        model = MODELS.build(backbone)
        model.load_state_dict(checkpoint)
        assert_backbone(model, state)
    elif way.startswith('nested'):
        # A module sees names below its own prefix only: wrappers around the whole file reach it as nothing and raise.
        prefix = way.split()[-1]
        given = {
            prefix + key.removeprefix('backbone.'): value for key, value in state.items() if key.startswith('backbone.')
        }
        holder = nn.Module()
        module = holder
        for part in prefix.split('.')[:-2]:
            module.add_module(part, nn.Module())
            module = getattr(module, part)
        module.add_module(prefix.split('.')[-2], MODELS.build(backbone))
        inside = {key.removeprefix(prefix): value for key, value in given.items()}
        if wrapper in ('bare', '_orig_mod. within', 'module.', 'teacher.', '_orig_mod.'):
            inside = WRAPPERS['module.' if wrapper == 'module.' else wrapper](inside)
            inside = inside.get('state_dict', inside)
            holder.load_state_dict({prefix + key: value for key, value in inside.items()}, strict=False)
            assert_backbone(module.get_submodule(prefix.split('.')[-2]), given, prefix)
        else:
            with pytest.raises(UserError, match=f'offers the ConvNeXt at {prefix!r} none of its tensors'):
                holder.load_state_dict(WRAPPERS[wrapper](given), strict=False)
    else:
        if way == 'resume':
            trained = runner_of(tmp_path)
            trained.train()
            saved = read_file(tmp_path / 'work/iter_1.pth', mmap=False)
            saved.pop('state_dict')
            torch.save({**checkpoint, **saved}, path)
        # As the tools do it, read by our scheme.
        runner = runner_of(tmp_path, load_from=f'convnext-dense:{path}', resume=way == 'resume')
        if way == 'test':
            attach_load_hook(runner, whole_model=True)
            runner.load_or_resume()
        else:
            runner.train()  # load_from: one step at a rate of 0; resume: no step is left
            assert runner.iter == 1
        assert_backbone(runner.model, state)
        assert torch.equal(runner.model.head.weight, state['head.weight'])


def test_bare_imagenet_weights_by_load_from(tmp_path, logged):
    state = fill(official_layout(MICRO, False))
    torch.save({'model': state}, tmp_path / 'imagenet.pth')
    runner = runner_of(tmp_path, load_from=str(tmp_path / 'imagenet.pth'))
    runner.load_or_resume()
    assert_backbone(runner.model, state, prefix='')
    assert any(
        '2 tensors of the model outside the ConvNeXt are not in the checkpoint, or there in other shapes, and '
        'start new: head.weight, head.bias' in line
        for line in logged
    )
    runner = runner_of(tmp_path, load_from=str(tmp_path / 'imagenet.pth'))
    attach_load_hook(runner, whole_model=True)
    with pytest.raises(UserError, match='lacks 2 tensors of the model, .*: head.weight, head.bias; a test and a resum'):
        runner.load_or_resume()


@pytest.mark.parametrize('resume', [False, True])
def test_heads_of_other_classes_start_new_in_training_only(resume, tmp_path, logged):
    state = toy(output_norms=True)
    state['head.weight'] = torch.ones(5, 32, 1, 1)
    torch.save({'model': state, 'meta': {}, 'message_hub': {}}, tmp_path / 'file.pth')
    runner = runner_of(tmp_path, load_from=str(tmp_path / 'file.pth'), resume=resume)
    if resume:
        with pytest.raises(UserError, match='lacks 1 tensors of the model, or has them in other shapes: head.weight;'):
            runner.train()
    else:
        runner.load_or_resume()
        assert any('start new: head.weight' in line for line in logged)


def test_weights_without_training_state_do_not_resume(tmp_path):
    torch.save({'model': toy()}, tmp_path / 'weights.pth')
    runner = runner_of(tmp_path, load_from=str(tmp_path / 'weights.pth'), resume=True)
    with pytest.raises(UserError, match='is not a checkpoint of a training that can be resumed: it has no meta; give'):
        runner.train()


def test_later_init_weights_overwrites_nothing(tmp_path):
    state = toy()
    torch.save(state, tmp_path / 'weights.pth')
    model = MODELS.build(
        dict(type='ToyDetector', backbone=dict(type='ConvNeXt', arch=MICRO, pretrained=str(tmp_path / 'weights.pth')))
    )
    model.init_weights()
    model.init_weights()
    assert_backbone(model, state)
    model.backbone.init_weights()
    assert_backbone(model, state)


def test_two_backbones_each_get_theirs(tmp_path):
    class Twins(BaseModule):
        def __init__(self):
            super().__init__()
            self.student, self.teacher = ConvNeXt(MICRO), ConvNeXt(MICRO)

    one, other = (fill(official_layout(MICRO, False, output_norms=True), seed) for seed in (1, 2))
    torch.save(
        {**{f'student.{k}': v for k, v in one.items()}, **{f'teacher.{k}': v for k, v in other.items()}},
        tmp_path / 'twins.pth',
    )
    twins = Twins()
    load_checkpoint(twins, str(tmp_path / 'twins.pth'))
    assert_backbone(twins.student, one, '')
    assert_backbone(twins.teacher, other, '')


@pytest.mark.parametrize('state', [{}, {'head.weight': torch.ones(2)}, {'state_dict': {}}, {'model': 3}])
def test_a_load_without_a_backbone_raises(state, tmp_path):
    model = MODELS.build(dict(type='ToyDetector', backbone=dict(type='ConvNeXt', arch=MICRO)))
    with pytest.raises(UserError, match="offers the ConvNeXt at 'backbone.' none of its tensors"):
        model.load_state_dict(state, strict=False)
    torch.save(state, tmp_path / 'file.pth')
    with pytest.raises(UserError, match='none of its tensors|holds no ConvNeXt'):
        runner_of(tmp_path, load_from=str(tmp_path / 'file.pth')).load_or_resume()


# ---- once


@pytest.fixture
def work(monkeypatch) -> dict[str, int]:
    """How often a checkpoint was flattened and matched against the dialects."""
    counts = dict(tensors_of=0, find_backbones=0)
    for name in counts:
        function = getattr(find, name)

        def counted(*args, name=name, function=function):
            counts[name] += 1
            return function(*args)

        for module in (fit, load_hook):
            monkeypatch.setattr(module, name, counted)
    return counts


@pytest.mark.parametrize(
    'way',
    [
        'init_cfg',
        'pretrained',
        'load_state_dict',
        'load_state_dict of another dialect',
        "mmengine's load_checkpoint",
        'load_from',
        'load_from of another dialect',
        'load_from, hook of the config and the tool',
        'load_from, hook of the tool',
        'resume',
        'test',
    ],
)
def test_a_checkpoint_is_matched_once(way, tmp_path, work, logged):
    state = toy(output_norms=True)
    if 'dialect' in way:
        own = {name.removeprefix('backbone.'): value for name, value in toy().items() if name.startswith('backbone.')}
        own = {name: value for name, value in own.items() if not name.startswith(('norm.', 'head.', 'norm'))}
        written, _ = next(dialect for dialect in DIALECTS if dialect.name == 'mmpretrain').write(own)
        state = {f'backbone.{name}': value for name, value in written.items()}
        state.update({name: value for name, value in toy().items() if name.startswith('head.')})
    path = tmp_path / 'file.pth'
    torch.save({'state_dict': state, 'meta': {}, 'message_hub': {}}, path)
    backbone = dict(type='ConvNeXt', arch=MICRO)
    if way == 'init_cfg':
        MODELS.build(dict(backbone, init_cfg=dict(type='Pretrained', checkpoint=str(path)))).init_weights()
    elif way == 'pretrained':
        MODELS.build(dict(backbone, pretrained=str(path))).init_weights()
    elif way.startswith('load_state_dict'):
        MODELS.build(dict(type='ToyDetector', backbone=backbone)).load_state_dict(state)
    elif way.startswith('mmengine'):
        load_checkpoint(MODELS.build(dict(type='ToyDetector', backbone=backbone)), str(path))
    else:
        if way == 'resume':
            runner_of(tmp_path).train()
            path = tmp_path / 'work/iter_1.pth'
        hooks = None if way.endswith('hook of the tool') else [dict(type='ConvNeXtLoadHook')]
        runner = runner_of(tmp_path, load_from=str(path), resume=way == 'resume', custom_hooks=hooks)
        if way in ('resume', 'test') or 'tool' in way:
            attach_load_hook(runner, whole_model=way == 'test')
        runner.load_or_resume()
    assert work == dict(tensors_of=1, find_backbones=1)
    assert len([line for line in logged if 'tensors from an' in line or 'tensors from a ' in line]) == 1


def test_several_convnexts_are_matched_in_one_pass(work, logged):
    class Twins(nn.Module):
        def __init__(self):
            super().__init__()
            self.student, self.teacher = ConvNeXt(MICRO), ConvNeXt(MICRO)

    source, twins = Twins(), Twins()
    checkpoint = {'state_dict': source.state_dict()}
    fit_checkpoint(twins, checkpoint, whole_model=True)
    twins.load_state_dict(checkpoint['state_dict'])
    assert work == dict(tensors_of=1, find_backbones=1) and len(logged) == 2


@pytest.mark.parametrize(
    'of_the_config, asked, whole_model', [(None, True, True), (False, True, True), (True, False, True), (False,) * 3]
)
def test_the_hook_is_attached_once(of_the_config, asked, whole_model, tmp_path):
    hooks = [] if of_the_config is None else [dict(type='ConvNeXtLoadHook', whole_model=of_the_config)]
    runner = runner_of(tmp_path, custom_hooks=hooks)
    attach_load_hook(runner, asked)
    attach_load_hook(runner, asked)
    assert [hook.whole_model for hook in runner.hooks if isinstance(hook, ConvNeXtLoadHook)] == [whole_model]


def test_fitted_tensors_that_another_hook_changes_are_fitted_again(tmp_path, logged):
    """What ConvNeXtLoadHook has fitted is not believed blindly."""
    state, checkpoint = toy(output_norms=True), {}
    model = MODELS.build(dict(type='ToyDetector', backbone=dict(type='ConvNeXt', arch=MICRO)))
    checkpoint['state_dict'] = OrderedDict(state)
    fit_checkpoint(model, checkpoint)
    del checkpoint['state_dict']['backbone.stages.0.0.gamma']
    with pytest.raises(UserError, match='1 tensors of the model are not in the file: stages.0.0.gamma'):
        model.load_state_dict(checkpoint['state_dict'], strict=False)


# ---- modules inside wrappers, and versions of layers


def unwrapped(name: str) -> str:
    return name.replace('_checkpoint_wrapped_module.', '').replace('_orig_mod.', '')


@pytest.mark.parametrize('wrap', [checkpoint_wrapper, torch.compile])
@pytest.mark.parametrize(
    'way', ['hook', 'load_state_dict', 'own state dict', "mmengine's load_checkpoint", 'pretrained']
)
def test_blocks_inside_wrappers_are_loaded(way, wrap, tmp_path):
    """mmengine's activation_checkpointing wraps blocks, as users' torch.compile does."""
    if way == 'pretrained' and wrap is torch.compile:
        pytest.skip('mmengine initialises no compiled part of a model')
    state = toy(output_norms=True)
    torch.save({'state_dict': state}, tmp_path / 'file.pth')
    model = MODELS.build(dict(type='ToyDetector', backbone=dict(type='ConvNeXt', arch=MICRO)))
    for stage in model.backbone.stages:
        for i, block in enumerate(stage):
            stage[i] = wrap(block)
    if way == 'hook':
        checkpoint = {'state_dict': state}
        fit_checkpoint(model, checkpoint, whole_model=True)
        model.load_state_dict(checkpoint['state_dict'])
    elif way == 'load_state_dict':
        model.load_state_dict(state)
    elif way == 'own state dict':
        own = {unwrapped(name): name for name in model.state_dict()}
        model.load_state_dict({own[name]: value for name, value in state.items()})
    elif way == 'pretrained':
        model.backbone.init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'file.pth'))
        model.backbone.init_weights()
    else:
        load_checkpoint(model, str(tmp_path / 'file.pth'))
    loaded = {unwrapped(name): param for name, param in model.backbone.named_parameters()}
    assert len(loaded) == 60 + 9, 'four blocks as in official_layout, one more in stage 2'
    for name, param in loaded.items():
        assert torch.equal(param, state[f'backbone.{name}']), name


class Versioned(nn.Conv2d):
    """A layer that reads its version, as mmdet's AnchorFreeHead does: without one it renames its tensors."""

    _version = 3

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args):
        self.seen = local_metadata.get('version')
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


def test_versions_of_other_layers_arrive(tmp_path):
    models = [MODELS.build(dict(type='ToyDetector', backbone=dict(type='ConvNeXt', arch=MICRO))) for _ in range(2)]
    for model in models:
        model.head = Versioned(32, 2, 1)
    save_checkpoint({'state_dict': models[0].state_dict()}, str(tmp_path / 'file.pth'))
    checkpoint = read_file(tmp_path / 'file.pth', mmap=False)
    fit_checkpoint(models[1], checkpoint, whole_model=True)
    models[1].load_state_dict(checkpoint['state_dict'])
    assert models[1].head.seen == 3
