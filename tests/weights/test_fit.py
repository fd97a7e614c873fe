"""A file fits completely, or an error says what does not; what was done is one line."""

import random
import re

import pytest
import torch
from weights_helpers import IMAGE, MICRO, V2, fill, imagenet, official_layout, redraw

from convnext_dense import ARCHS, ConvNeXt, UserError
from convnext_dense.weights.dialects import DIALECTS, STAGED


def test_summary_is_one_line(logged):
    ConvNeXt('tiny').load_state_dict({'model': fill(official_layout(ARCHS['tiny'], False))})
    assert logged == [
        "ConvNeXt tiny: 178 of 178 tensors from an official file (prefix 'model.'); norm0, norm1, norm2, "
        'norm3 start new, as they must for ImageNet weights'
    ]


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_announced(dtype, logged):
    state = {name: value.to(dtype) for name, value in fill(official_layout(MICRO, False)).items()}
    model = ConvNeXt(MICRO)
    model.load_state_dict(state)
    for name, param in model.named_parameters():
        assert param.dtype == torch.float32
        assert re.match(r'norm\d', name) or torch.equal(param, state[name].float())
    assert f'stored as {str(dtype)[6:]}' in logged[-1]


def test_stages_that_are_left_out(logged):
    state = fill(official_layout(MICRO, False, output_norms=True))
    model = ConvNeXt(MICRO, out_indices=(0, 2))
    model.load_state_dict(state)
    assert torch.equal(model.stages[2][1].gamma, state['stages.2.1.gamma'])
    assert torch.equal(model.norm2.weight, state['norm2.weight'])
    assert 'stage 3 of the file (arch=dict(depths=[1, 1, 2, 1], channels=[8, 16, 24, 32])) is not built' in logged[-1]


def drop(name):
    return lambda state: state.pop(name)


def add(name, shape=(3,)):
    return lambda state: state.update({name: torch.zeros(shape)})


def integers(state):
    state['stages.0.0.pwconv1.weight'] = state['stages.0.0.pwconv1.weight'].to(torch.int8)


def half_a_norm(state):
    state['norm1.weight'] = torch.ones(16)


@pytest.mark.parametrize(
    'change, sentence',
    [
        (drop('stages.2.1.pwconv2.bias'), '1 tensors of the model are not in the file: stages.2.1.pwconv2.bias'),
        (drop('stages.2.1.pwconv2.bias'), 'the file is incomplete or damaged'),
        (add('stages.2.9.gamma'), '1 tensors of the file are not in the model: (model.)?stages.2.9.gamma'),
        (add('decoder.weight'), 'not in the model: (model.)?decoder.weight'),
        (add('stages.0.0.gamma', (9,)), r'1 shapes differ: (model.)?stages.0.0.gamma \(9,\) for \(8,\)'),
        (add('stages.0.0.pwconv1.weight', (8, 32)), r'stages.0.0.pwconv1.weight \(8, 32\) for \(32, 8\)'),
        (
            add('downsample_layers.0.0.weight', (8, 3, 2, 2)),
            'set stem_patch_size=2 in the backbone, or give a file for stem_patch_size=4',
        ),
        (add('stages.0.0.grn.gamma', (1, 1, 1, 32)), 'set use_grn=True in the backbone'),
        (integers, 'stages.0.0.pwconv1.weight of type torch.int8 for torch.float32'),
        (half_a_norm, 'not in the file: norm1.bias'),
        (lambda state: state.clear(), 'none of its tensors'),
    ],
)
def test_misfits_raise(change, sentence, tmp_path):
    state = fill(official_layout(MICRO, False))
    change(state)
    torch.save({'model': state}, tmp_path / 'file.pth')
    for strict in (True, False):
        with pytest.raises(UserError, match=sentence):
            ConvNeXt(MICRO).load_state_dict({'model': state}, strict=strict)
    with pytest.raises(UserError, match=f'file.pth: .*{sentence}'):
        ConvNeXt(MICRO, pretrained=str(tmp_path / 'file.pth')).init_weights()


def test_first_three_offenders_on_each_side():
    state = fill(official_layout(dict(MICRO, channels=[8, 16, 24, 40]), False))
    for name in [name for name in state if name.startswith('stages.0.0.')][:5]:
        state[f'{name}.x'] = state.pop(name)
    with pytest.raises(UserError) as error:
        ConvNeXt(MICRO).load_state_dict(state)
    text = str(error.value)
    assert (
        '5 tensors of the model are not in the file: stages.0.0.gamma, stages.0.0.dwconv.weight, '
        'stages.0.0.dwconv.bias, ...' in text
    )
    assert '5 tensors of the file are not in the model: stages.0.0.gamma.x, stages.0.0.dwconv.weight.x, ' in text
    assert 'set arch=dict(depths=[1, 1, 2, 1], channels=[8, 16, 24, 40]) in the backbone' in text and '\n' not in text


def test_small_is_not_taken_for_tiny():
    """Every tensor of a Tiny has a match in a Small file: only the surplus tells."""
    with pytest.raises(UserError, match="looks like arch='small', the model is arch='tiny'; set arch='small' in the"):
        ConvNeXt('tiny').load_state_dict(fill(official_layout(ARCHS['small'], False)))


def test_first_version_is_not_taken_for_the_second():
    with pytest.raises(UserError, match='set use_grn=True, layer_scale_init_value=0 in the backbone'):
        ConvNeXt(MICRO).load_state_dict(fill(official_layout(MICRO, True)))
    with pytest.raises(UserError, match='set use_grn=False, layer_scale_init_value=1.0 in the backbone'):
        ConvNeXt(MICRO, **V2).load_state_dict(fill(official_layout(MICRO, False)))


def test_tensors_that_only_pretend_to_be_large():
    state = imagenet()['model']
    state['stages.0.0.grn.gamma'] = torch.ones(1).expand(1, 1, 1, 10**12)
    state['stages.0.0.pwconv1.weight'] = torch.ones(1, 1, 1, 1).expand(10**6, 10**6, 1, 1)
    with pytest.raises(UserError, match=r'1 tensors of the file are not .*pwconv1.weight \(1000000, 1000000\) for'):
        ConvNeXt(MICRO).load_state_dict(state)


# ---- shapes that are changed on purpose


@pytest.mark.parametrize('channels', [1, 2, 4, 7])
def test_other_input_channels_are_adapted_as_in_timm(channels, logged):
    from timm.models._manipulate import adapt_input_conv

    state = fill(official_layout(MICRO, False))
    model = ConvNeXt(MICRO, in_channels=channels)
    model.load_state_dict(state)
    stem = 'downsample_layers.0.0.weight'
    torch.testing.assert_close(model.get_parameter(stem), adapt_input_conv(channels, state[stem]))
    assert f'the stem is adapted from 3 to {channels} input channels' in logged[-1]
    with pytest.raises(UserError, match=f'set in_channels={channels} in the backbone'):
        ConvNeXt(MICRO).load_state_dict(model.state_dict())
    again = ConvNeXt(MICRO, in_channels=channels)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.get_parameter(stem), model.get_parameter(stem)) and 'adapted' not in logged[-1]


@pytest.mark.parametrize('side', [3, 5, 9])
def test_other_kernel_sizes_are_interpolated_when_asked_for(side, logged):
    state = fill(official_layout(MICRO, False))
    state['stages.0.0.dwconv.weight'] = torch.full((8, 1, 7, 7), 2.0)  # its sum is kept
    model = ConvNeXt(MICRO, kernel_size=side)
    model.load_state_dict(state)
    torch.testing.assert_close(model.stages[0][0].dwconv.weight, torch.full((8, 1, side, side), 2 * 49 / side**2))
    assert f'depthwise kernels are interpolated from 7x7 to {side}x{side}' in logged[-1]
    assert [tuple(out.shape[2:]) for out in model(IMAGE)] == [(16, 16), (8, 8), (4, 4), (2, 2)]
    with pytest.raises(UserError, match=f'set kernel_size={side} in the backbone, or give a file for kernel_size=7'):
        ConvNeXt(MICRO).load_state_dict(model.state_dict())


# ---- property: no change to a file makes a load partial without a word


def equal_or_announced(model, before, truth, line):
    """Whether every tensor has its true value, or is an output norm that the line says is new."""
    for name, param in model.named_parameters():
        norm = name.split('.')[0]
        if norm.startswith('norm') and norm in line.split('start new')[0] and 'start new' in line:
            assert torch.equal(param, before[name]), name
        else:
            assert torch.equal(param, truth[name]), name


STAGED_DIALECTS = [dialect for dialect in DIALECTS if dialect.family == STAGED]
CHANGES = ('rename', 'drop', 'reshape', 'dtype', 'prefix', 'swap', 'duplicate', 'stray')


@pytest.mark.parametrize('seed', range(12))
def test_random_changes_never_load_partially(seed, logged):
    rng = random.Random(seed)
    loads = 0
    for _ in range(50):
        v2 = rng.random() < 0.5
        options = dict(V2 if v2 else {}, arch=MICRO)
        source = ConvNeXt(**options)
        redraw(source)
        truth = {name: value.clone() for name, value in source.state_dict().items()}
        dialect = rng.choice(
            [d for d in STAGED_DIALECTS if d.name != 'fcmae' and not (v2 and d.name in ('torchvision', 'hf dinov3'))]
        )
        file, _ = dialect.write(truth)
        kinds = rng.sample(CHANGES, rng.randint(1, 3))
        for kind in kinds:
            name = rng.choice(list(file))
            if kind == 'rename':
                at = rng.randrange(len(name))
                file[name[:at] + rng.choice('abcxyz0129._') + name[at + 1 :]] = file.pop(name)
            elif kind == 'drop':
                for name in rng.sample(list(file), rng.choice([1, 1, 2, 10])):
                    del file[name]
            elif kind == 'reshape':
                shape = list(file[name].shape)
                shape[rng.randrange(len(shape))] += rng.choice([-1, 1, 2])
                file[name] = torch.zeros(shape)
            elif kind == 'dtype':
                dtype = rng.choice([torch.float16, torch.bfloat16, torch.int32])
                file = {key: value.to(dtype) for key, value in file.items()}
                if dtype.is_floating_point:
                    truth = {key: value.to(dtype).float() for key, value in truth.items()}
            elif kind == 'prefix':
                prefix = rng.choice(['backbone.', 'module.', 'a.b.c.', 'model.backbone.', 'encoder.', 'student.'])
                file = {prefix + key: value for key, value in file.items()}
            elif kind == 'swap':
                other = rng.choice(list(file))
                if file[name].shape != file[other].shape:
                    file[name], file[other] = file[other], file[name]
            elif kind == 'duplicate':
                file['other.' + name] = file[name] + 1
            else:
                file[rng.choice(['', 'head.', 'stages.', 'downsample_layers.0.']) + 'stray'] = torch.ones(3)
        model = ConvNeXt(**options)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        logged.clear()
        try:
            model.load_state_dict(file, strict=False)
        except UserError as error:
            assert '\n' not in str(error)
            assert all(torch.equal(param, before[name]) for name, param in model.named_parameters()), 'half-loaded'
            continue
        loads += 1
        assert len(logged) == 1
        equal_or_announced(model, before, truth, logged[0])
    assert loads, 'harmless changes must load'
