"""Conversion between the formats: other libraries take what is written, and the way back is bit-identical."""

import pickle
from pathlib import Path

import pytest
import torch
from weights_helpers import IMAGE, MICRO, V2, Hostile, fcmae_layout, fill, official_layout, plain_norm, redraw, relative

from convnext_dense import ARCHS, ConvNeXt
from convnext_dense.convert import TARGETS


def official(path, arch=MICRO, v2=False, dtype=torch.float32, **options):
    state = {name: value.to(dtype) for name, value in fill(official_layout(arch, v2, **options)).items()}
    torch.save({'model': state}, path)
    return state


def their_model(to, v2):
    if to == 'timm':
        import timm

        return timm.create_model('convnextv2_atto' if v2 else 'convnext_atto')
    if to == 'torchvision':
        import torchvision

        return torchvision.models.convnext_tiny()
    import transformers

    name = 'ConvNextV2' if v2 else 'ConvNext'
    return getattr(transformers, f'{name}Model')(
        getattr(transformers, f'{name}Config')(
            depths=list(ARCHS['atto']['depths']), hidden_sizes=list(ARCHS['atto']['channels'])
        )
    )


@pytest.mark.parametrize(
    'to, v2', [('timm', False), ('timm', True), ('torchvision', False), ('hf', False), ('hf', True)]
)
@torch.no_grad()
def test_other_libraries_take_what_is_written(to, v2, tmp_path, tool):
    arch = 'tiny' if to == 'torchvision' else 'atto'
    official(tmp_path / 'in.pth', ARCHS[arch], v2)
    message, text = tool('convert_checkpoint', tmp_path / 'in.pth', tmp_path / 'out.safetensors', '--to', to)
    assert message is None and 'read back and equal bit by bit' in text
    from safetensors.torch import load_file

    model = redraw(their_model(to, v2))
    keys = model.load_state_dict(load_file(tmp_path / 'out.safetensors'), strict=False)
    assert not keys.unexpected_keys
    assert {name.split('.')[0] for name in keys.missing_keys} <= {'head', 'classifier', 'layernorm'}
    ours = ConvNeXt(arch, **(V2 if v2 else {}), pretrained=str(tmp_path / 'in.pth')).eval()
    ours.init_weights()
    last = {
        'timm': lambda: model.forward_intermediates(IMAGE, intermediates_only=True)[-1],
        'torchvision': lambda: model.features(IMAGE),
        'hf': lambda: model(IMAGE).last_hidden_state,
    }[to]()
    assert relative(plain_norm(last), ours(IMAGE)[-1]) <= 1e-5


@pytest.mark.parametrize('ending', ['.pth', '.safetensors'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
@pytest.mark.parametrize('to', TARGETS)
def test_round_trip_is_bit_identical(to, dtype, ending, tmp_path, tool):
    norms, v2 = to not in ('timm', 'timm_conv', 'torchvision'), to != 'torchvision'
    state = official(tmp_path / 'in.pth', v2=v2, dtype=dtype, output_norms=norms)
    state['stages.0.0.dwconv.bias'][0] = -0.0
    state['stages.0.0.dwconv.bias'][1] = float('nan')
    torch.save({'model': state}, tmp_path / 'in.pth')
    for source, out, target in (
        ('in.pth', f'there{ending}', to),
        (f'there{ending}', 'back.pth', 'official'),
        (f'there{ending}', f'again{ending}', to),
    ):
        message, _ = tool('convert_checkpoint', tmp_path / source, tmp_path / out, '--to', target)
        assert message is None
    back = torch.load(tmp_path / 'back.pth')['model']
    kept = {name: value for name, value in state.items() if not name.startswith(('norm.', 'head.'))}
    assert back.keys() == kept.keys()
    for name, value in kept.items():
        assert back[name].shape == value.shape and back[name].dtype == dtype
        assert torch.equal(back[name].view(torch.int8), value.view(torch.int8)), name
    if ending == '.safetensors':
        assert (tmp_path / f'again{ending}').read_bytes() == (tmp_path / f'there{ending}').read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ['in.pth', f'there{ending}', 'back.pth', f'again{ending}']
    ), 'nothing half-written stays'


def test_pre_training_file_becomes_ours(tmp_path, tool):
    state = fill(fcmae_layout(MICRO, True))
    torch.save({'model': state}, tmp_path / 'fcmae.pt')
    assert tool('convert_checkpoint', tmp_path / 'fcmae.pt', tmp_path / 'ours.pth', '--to', 'ours')[0] is None
    model = ConvNeXt(MICRO, **V2)
    model.load_state_dict({'model': state})
    ours = torch.load(tmp_path / 'ours.pth')['state_dict']
    assert all(torch.equal(ours[name], param) for name, param in model.named_parameters() if name in ours)
    assert len(ours) == sum(1 for _ in model.parameters()) - 8


def test_inspect(tmp_path, tool):
    state = official(tmp_path / 'in.pth', ARCHS['tiny'], dtype=torch.float16)
    torch.save({'model': state, 'model_ema': state}, tmp_path / 'in.pth')
    message, text = tool('convert_checkpoint', tmp_path / 'in.pth', '--inspect')
    assert message is None and text.splitlines() == [
        f'file       {tmp_path}/in.pth',
        'dialect    official',
        "prefix     'model.'",
        "arguments  arch='tiny', use_grn=False, layer_scale_init_value=1.0, in_channels=3, stem_patch_size=4, "
        'kernel_size=7',
        'tensors    178 of the backbone, 27.8 million numbers',
        'dtype      float16',
        'norms      no output norms',
        'inputs     unknown mean and std',
        'licence    unknown, ask where the file comes from',
        "loads      ConvNeXt tiny: 178 of 178 tensors from an official file (prefix 'model.'); stored as float16; "
        "norm0, norm1, norm2, norm3 start new, as they must for ImageNet weights; not taken: the copy at 'model_ema.'",
    ]
    assert (
        "prefix     'model_ema.'"
        in tool('convert_checkpoint', tmp_path / 'in.pth', '--inspect', '--prefix', 'model_ema.')[1]
    )
    del state['stages.0.0.gamma']
    torch.save(state, tmp_path / 'part.pth')
    _, text = tool('convert_checkpoint', tmp_path / 'part.pth', '--inspect')
    assert 'loads      nothing: these weights do not fit' in text


def test_what_a_format_cannot_hold(tmp_path, tool):
    official(tmp_path / 'v2.pth', v2=True)
    message, _ = tool('convert_checkpoint', tmp_path / 'v2.pth', tmp_path / 'out.pth', '--to', 'torchvision')
    assert message.startswith('error: the torchvision format has no name for 10 tensors of ')
    official(tmp_path / 'detector.pth', output_norms=True)
    message, text = tool('convert_checkpoint', tmp_path / 'detector.pth', tmp_path / 'out.pth', '--to', 'timm')
    assert message is None and 'left out, the timm format has no name for them: norm0.weight, norm0.bias, ' in text


@pytest.mark.parametrize(
    'args, sentence',
    [
        (('in.pth',), 'give the file to write and its format'),
        (('in.pth', 'out.pth'), 'give the file to write'),
        (('gone.pth', '--inspect'), 'there is no file gone.pth'),
    ],
)
def test_missing_arguments(args, sentence, tool):
    message, _ = tool('convert_checkpoint', *args)
    assert message.startswith('error: ') and sentence in message


@pytest.mark.parametrize('plain', [False, True])
def test_only_the_word_of_the_user_lets_a_pickle_run(plain, tmp_path, tool):
    state = fill(official_layout(MICRO, False))
    content = {'model': {name: value.numpy() for name, value in state.items()}, 'more': Hostile(tmp_path / 'mark')}
    if plain:
        (tmp_path / 'in.pkl').write_bytes(pickle.dumps(content))
    else:
        torch.save(content, tmp_path / 'in.pkl')
    for args in ((tmp_path / 'out.pth', '--to', 'ours'), ('--inspect',)):
        message, _ = tool('convert_checkpoint', tmp_path / 'in.pkl', *args)
        assert 'holds code, not only tensors' in message and not Path(tmp_path / 'mark').exists()
    message, text = tool(
        'convert_checkpoint', tmp_path / 'in.pkl', tmp_path / 'out.pth', '--to', 'ours', '--trust-checkpoint'
    )
    assert message is None and Path(tmp_path / 'mark').exists()
    ConvNeXt(MICRO, pretrained=str(tmp_path / 'out.pth')).init_weights()
