"""Every ConvNeXt of timm: its weights load, give its outputs, and go back bit by bit."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from weights_helpers import IMAGE, MICRO, redraw, relative

from convnext_dense import ConvNeXt, UserError
from convnext_dense.archs import TIMM_MODELS, VARIANTS
from convnext_dense.convert import convert
from convnext_dense.weights.find import choose, find_backbones
from convnext_dense.weights.fit import arguments_of

# 3 to 15 M parameters.
SMALL = [name for name in TIMM_MODELS if any(kind in name for kind in ('test_', 'zepto', 'atto', 'femto', 'pico'))]
# 2 of each size; all in `pytest -m large`, which takes 8 GB of memory.
LARGE = [name for name in TIMM_MODELS if name not in SMALL]


def test_names():
    theirs = {name for name in timm.list_models() if name.startswith(('convnext', 'test_convnext'))}
    assert len(theirs) == 31 and set(TIMM_MODELS) == theirs


def outputs_equal_and_weights_return(name: str, folder: Path, **options) -> None:
    with torch.no_grad():
        theirs = redraw(timm.create_model(name, **options))
        ours = ConvNeXt(**TIMM_MODELS[name], **options).eval()
        ours.load_state_dict(theirs.state_dict())
        expected = theirs.forward_intermediates(IMAGE, intermediates_only=True)
        for i, (out, feature) in enumerate(zip(ours(IMAGE), expected, strict=True)):
            # The output norms are new and have their initial values; they are checked by the other tests.
            assert relative(out, ours.get_submodule(f'norm{i}')(feature)) <= 1e-5
    state = theirs.state_dict()
    del theirs, ours, expected
    save_file(state, folder / 'theirs.safetensors')
    convert(str(folder / 'theirs.safetensors'), folder / 'ours.safetensors', 'ours')
    to = 'timm_conv' if 'hnf' in name else 'timm'
    convert(str(folder / 'ours.safetensors'), folder / 'back.safetensors', to)
    back = load_file(folder / 'back.safetensors')
    assert back.keys() == {key for key in state if not key.startswith(('head.', 'norm_pre.'))}
    for key, value in back.items():
        assert value.shape == state[key].shape and torch.equal(value.view(torch.int32), state[key].view(torch.int32))


@pytest.mark.parametrize('name', SMALL)
def test_small_models(name, tmp_path):
    outputs_equal_and_weights_return(name, tmp_path)


@pytest.mark.large
@pytest.mark.parametrize('name', LARGE)
def test_large_models(name, tmp_path):
    outputs_equal_and_weights_return(name, tmp_path)


@pytest.mark.parametrize('name', ['convnext_atto', 'convnext_atto_ols', 'test_convnext3'])
def test_convolutions_without_bias(name, tmp_path):
    outputs_equal_and_weights_return(name, tmp_path, conv_bias=False)


@pytest.mark.parametrize('name', TIMM_MODELS)
def test_a_file_says_which_model_it_is(name):
    """By names and shapes alone: eps and activation come with the name of the variant."""
    with torch.device('meta'):
        state = timm.create_model(name).state_dict()
    found = arguments_of(choose(find_backbones(state)).tensors)
    expected = dict(in_channels=3, stem_patch_size=4, kernel_size=7, use_grn=False, layer_scale_init_value=1.0)
    expected.update(TIMM_MODELS[name])
    if expected['arch'] in VARIANTS:
        expected = {key: value for key, value in expected.items() if key not in ('stem', 'kernel_size')}
    kept = {key: found[key] for key in expected if key in found}
    assert kept == {key: value for key, value in expected.items() if key in found} and found['arch'] == expected['arch']
    with torch.device('meta'):
        model = ConvNeXt(**found)
    assert {key: tuple(value.shape) for key, value in model.named_parameters() if not key.startswith('norm')} == {
        key: tuple(value.shape) for key, value in choose(find_backbones(state)).tensors.items()
    }


def test_variant_sets_what_is_not_given():
    with torch.device('meta'):
        model = ConvNeXt('xxlarge')
        assert {module.eps for module in model.modules() if isinstance(module, torch.nn.LayerNorm)} == {1e-5}
        other = ConvNeXt('test_convnext3', norm_cfg=dict(type='LN2d', eps=1e-3), kernel_size=3)
    assert (
        other.norm0.eps == 1e-3
        and other.kernel_sizes == (3, 3, 3, 3)
        and isinstance(other.stages[0][0].act, torch.nn.SiLU)
    )


@pytest.mark.parametrize('arch', ['zepto_rms_ols', 'test_convnext3'])
@pytest.mark.parametrize('memory', [None, 'lean', 'checkpoint'])
def test_variants_train(arch, memory):
    """The fused block steps aside for parts that it does not know; every parameter gets a gradient."""
    model = ConvNeXt(arch, memory=memory, drop_path_rate=0.1).train()
    sum(out.square().mean() for out in model(IMAGE.repeat(2, 1, 1, 1))).backward()
    assert [name for name, param in model.named_parameters() if param.grad is None] == []


def test_half_precision_of_the_norms():
    """Statistics are computed in fp32: squares of 300 overflow in fp16."""
    model = ConvNeXt('zepto_rms').half()
    norm = model.downsample_layers[0][1]
    x = torch.full((1, 32, 2, 2), 300.0).half()
    x[:, ::2] *= -1
    torch.testing.assert_close(norm(x), torch.sign(x) * (31 / 32) ** 0.5, rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    'options, sentence',
    [
        (dict(stem='tiered'), "no stem='tiered': use one of patch, overlap, overlap_tiered, overlap_act"),
        (dict(stem='overlap', stem_patch_size=2), "stem='overlap' has a stride of 4, found stem_patch_size=2"),
        (dict(norm_cfg=dict(type='BN')), 'use one of LN2d, LN, RMSNorm, SimpleNorm as type'),
        (dict(norm_cfg=dict(type='LN', affine=False)), 'ConvNeXt has no norm_cfg='),
        (dict(act_cfg=dict(type='ReLU')), 'ConvNeXt has no act_cfg='),
        (dict(act_cfg=dict(type='GELU', approximate='erf')), 'ConvNeXt has no act_cfg='),
        (dict(kernel_size=(7, 5, 5)), 'an odd kernel_size, or one for each of the 4 stages, found'),
        (dict(kernel_size=(7, 5, 4, 3)), 'an odd kernel_size'),
        (dict(arch='convnext_tiny'), 'no arch .*use one of atto, .*, huge, zepto_rms, .*, test_convnext3'),
    ],
)
def test_bad_arguments(options, sentence):
    with pytest.raises(UserError, match=sentence):
        ConvNeXt(**{'arch': MICRO, **options})


@pytest.mark.parametrize(
    'file, model, sentence',
    [
        ('zepto_rms_ols', 'zepto_rms', "set arch='zepto_rms_ols' in the backbone, or give a file for arch='zepto_rms'"),
        ('atto_ols', 'atto', "set arch='atto_ols' in the backbone"),
        ('atto_rms', 'atto', "set arch='atto_rms' in the backbone"),
        ('atto', 'atto_rms', r"set norm_cfg=dict\(type='LN2d'\), arch='atto' in the backbone"),
    ],
)
def test_another_stem_or_norm_is_an_error(file, model, sentence):
    with pytest.raises(UserError, match=sentence):
        ConvNeXt(model).load_state_dict(ConvNeXt(file).state_dict())


def test_formats_of_libraries_without_the_variants(tmp_path):
    save_file(ConvNeXt('test_convnext').state_dict(), tmp_path / 'in.safetensors')
    for to in ('hf', 'torchvision', 'mmpretrain'):
        with pytest.raises(
            UserError, match=f"the {to} format has no ConvNeXt with arch='test_convnext': choose one of"
        ):
            convert(str(tmp_path / 'in.safetensors'), tmp_path / 'out.pth', to)
