"""The isotropic ConvNeXt: against a plain formula, its published counts, and its contract as a backbone."""

import pytest
import torch
import torch.nn.functional as F
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from weights_helpers import assert_backbone, fill, isotropic_layout, official_layout, runner_of

from convnext_dense import ISOTROPIC_ARCHS, ConvNeXt, ConvNeXtIsotropic, UserError
from convnext_dense.export import Features, check_onnx, export_onnx

MICRO = dict(depth=3, channels=8)


def redraw(model: nn.Module) -> None:
    """New random values for every tensor, none near its initial value, at which a missing layer would not show."""
    generator = torch.Generator().manual_seed(0)
    for name, param in model.named_parameters():
        noise = torch.randn(param.shape, generator=generator)
        if param.ndim > 1:
            value = noise / param[0].numel() ** 0.5
        elif name.endswith('bias'):
            value = 0.1 * noise
        else:
            value = 1 + 0.2 * noise
        param.data.copy_(value)


def plain(image: Tensor, state: dict[str, Tensor], depth: int) -> tuple[Tensor, set[str]]:
    """The network as the official code writes it, and the names of the tensors that it takes."""
    used = set()

    def take(name: str) -> Tensor:
        used.add(name)
        return state[name]

    def layer_norm(x: Tensor, name: str) -> Tensor:
        """Over the last dimension."""
        centred = x - x.mean(-1, keepdim=True)
        variance = centred.square().mean(-1, keepdim=True)
        return centred / (variance + 1e-6).sqrt() * take(f'{name}.weight') + take(f'{name}.bias')

    x = F.conv2d(image, take('stem.weight'), take('stem.bias'), stride=16)
    for i in range(depth):
        name = f'blocks.{i}'
        y = F.conv2d(x, take(f'{name}.dwconv.weight'), take(f'{name}.dwconv.bias'), padding=3, groups=x.shape[1])
        y = layer_norm(y.permute(0, 2, 3, 1), f'{name}.norm')
        y = F.gelu(y @ take(f'{name}.pwconv1.weight').T + take(f'{name}.pwconv1.bias'))
        y = y @ take(f'{name}.pwconv2.weight').T + take(f'{name}.pwconv2.bias')
        if f'{name}.gamma' in state:
            y = y * take(f'{name}.gamma')
        x = x + y.permute(0, 3, 1, 2)
    return layer_norm(x.permute(0, 2, 3, 1), 'norm0').permute(0, 3, 1, 2), used


@pytest.mark.parametrize(
    'options',
    [{}, dict(layer_scale_init_value=0.5), dict(memory='lean'), dict(memory='checkpoint'), dict(with_cp=True)],
    ids=str,
)
@pytest.mark.parametrize('size', [(64, 96), (71, 133)])
def test_equals_the_plain_formula(options, size):
    """Outputs, and gradients of every parameter, in every memory mode of the blocks."""
    model = ConvNeXtIsotropic(MICRO, **options).double()
    redraw(model)
    state = {name: param.detach().clone().requires_grad_() for name, param in model.named_parameters()}
    image = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1)).double()
    (out,) = model(image)
    want, used = plain(image, state, depth=3)
    assert used == set(state)
    assert out.is_contiguous() and out.shape == want.shape == (2, 8, size[0] // 16, size[1] // 16)
    torch.testing.assert_close(out, want, rtol=1e-9, atol=1e-9)
    weights = torch.randn_like(out)
    (out * weights).sum().backward()
    (want * weights).sum().backward()
    for name, param in model.named_parameters():
        torch.testing.assert_close(param.grad, state[name].grad, rtol=1e-8, atol=1e-8, msg=name)


class Classifier(nn.Module):
    """As the paper counts it: mean over the map, LayerNorm, Linear. norm0 stands for the LayerNorm."""

    def __init__(self, arch: str) -> None:
        super().__init__()
        self.backbone = ConvNeXtIsotropic(arch)
        self.head = nn.Linear(self.backbone.channels[0], 1000)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.backbone(image)[0].mean((-2, -1)))


def multiply_adds(model: nn.Module, height: int, width: int) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, 3, height, width, device='meta'))
    return counter.get_total_flops() // 2


# Published: 22 M and 4.3 G, 87 M and 16.9 G, 306 M and 59.7 G (paper, Table 2).
@pytest.mark.parametrize(
    'arch, depth, channels, params, at_224, at_1280x800',
    [
        ('small', 18, 384, 22_308_712, '4.2864', '87.47'),
        ('base', 18, 768, 87_083_752, '16.8963', '344.81'),
        ('large', 36, 1024, 305_942_504, '59.6992', '1218.33'),
    ],
)
def test_counts(arch, depth, channels, params, at_224, at_1280x800):
    with torch.device('meta'):
        model = Classifier(arch).eval()
    assert (model.backbone.depth, model.backbone.channels) == (depth, (channels,))
    assert sum(param.numel() for param in model.parameters()) == params
    assert f'{multiply_adds(model, 224, 224) / 1e9:.4f}' == at_224
    assert f'{multiply_adds(model.backbone, 800, 1280) / 1e9:.2f}' == at_1280x800


@pytest.mark.parametrize('arch, gamma', [('small', None), ('base', None), ('large', 1e-6)])
def test_layer_scale_of_the_archs(arch, gamma):
    with torch.device('meta'):
        block = ConvNeXtIsotropic(arch).blocks[0]
    assert (block.gamma is None) == (gamma is None) and ISOTROPIC_ARCHS[arch]['layer_scale_init_value'] == (gamma or 0)


def test_official_initialisation():
    torch.manual_seed(0)
    model = ConvNeXtIsotropic(dict(depth=2, channels=64, layer_scale_init_value=1e-6))
    layers = [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    assert len(layers) == 1 + 2 * 3 and not any(layer.bias.any() for layer in layers)
    weights = torch.cat([layer.weight.flatten() for layer in layers])
    assert weights.std().item() == pytest.approx(0.02, rel=0.02)
    assert model.blocks[1].gamma.tolist() == [pytest.approx(1e-6)] * 64


def test_training_step():
    model = MODELS.build(dict(type='ConvNeXtIsotropic', arch=MICRO, drop_path_rate=0.2)).train()
    assert [block.drop_path.rate for block in model.blocks] == pytest.approx([0, 0.1, 0.2])
    assert (model.strides, model.out_indices) == ((16,), (0,))
    before = {name: param.clone() for name, param in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    torch.manual_seed(0)
    (out,) = model(torch.randn(4, 3, 64, 64))
    (out * torch.randn_like(out)).mean().backward()
    optimizer.step()
    assert [name for name, param in model.named_parameters() if torch.equal(param, before[name])] == []


def test_export():
    model = ConvNeXtIsotropic(MICRO).eval()
    redraw(model)
    image = torch.randn(1, 3, 71, 133)
    program = torch.export.export(model, (image,))
    with torch.no_grad():
        torch.testing.assert_close(program.module()(image), model(image))


@pytest.mark.slow
def test_onnx_graph(tmp_path):
    """Of any batch, height and width, with the neck behind it."""
    pytest.importorskip('onnxscript')
    pytest.importorskip('onnxruntime')
    backbone, neck = ConvNeXtIsotropic(MICRO), MODELS.build(dict(type='SimpleFeaturePyramid', in_channels=8))
    redraw(backbone)
    model = Features(backbone, neck).eval()
    export_onnx(model, tmp_path / 'model.onnx')
    assert check_onnx(model, tmp_path / 'model.onnx') <= 1e-5


@pytest.mark.parametrize('frozen', [-1, 0, 1, 3, 4])
def test_frozen_layers(frozen):
    model = ConvNeXtIsotropic(MICRO, frozen_layers=frozen, drop_path_rate=0.2).eval().train()
    layers = [model.stem, *model.blocks]
    for i, layer in enumerate(layers):
        assert layer.training == (i >= frozen)
        assert {param.requires_grad for param in layer.parameters()} == {i >= frozen}
    assert model.norm0.weight.requires_grad


def test_layer_decay():
    """ViTDet's rule: the patch embedding, then one id per block; exponents of the decay rate."""
    with torch.device('meta'):
        model = nn.ModuleDict(dict(backbone=ConvNeXtIsotropic('small'), head=nn.Conv2d(8, 8, 1)))
    cfg = dict(
        constructor='ConvNeXtLayerDecayConstructor',
        paramwise_cfg=dict(decay_rate=0.5),
        optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.05),
    )
    names = {id(param): name for name, param in model.named_parameters()}
    groups = build_optim_wrapper(model, cfg).optimizer.param_groups
    settings = {names[id(param)]: (group['lr'], group['weight_decay']) for group in groups for param in group['params']}
    assert len(settings) == len(names) and len(groups) == 2 * 20
    for name, exponent in {
        'stem.weight': 19,
        'blocks.0.dwconv.weight': 18,
        'blocks.9.pwconv1.weight': 9,
        'blocks.17.pwconv2.weight': 1,
    }.items():
        assert settings[f'backbone.{name}'] == (0.5**exponent, 0.05)
    assert settings['backbone.blocks.17.norm.weight'] == (0.5, 0.0)
    assert settings['backbone.norm0.weight'] == (1.0, 0.0) and settings['head.weight'] == (1.0, 0.05)


def test_layer_decay_refuses():
    model = ConvNeXtIsotropic(MICRO)
    with pytest.raises(UserError, match="has no stages for paramwise_cfg.decay_type='stage_wise': use layer_wise"):
        model.layer_id('stem.weight', 'stage_wise')
    with pytest.raises(UserError, match="does not know the ConvNeXtIsotropic parameter 'adapter.weight'"):
        model.layer_id('adapter.weight', 'layer_wise')


@pytest.mark.parametrize(
    'options, sentence',
    [
        (dict(arch='tiny'), "no arch 'tiny': use one of small, base, large"),
        (dict(arch=dict(depths=[1], channels=[8])), 'needs depth and channels, positive whole numbers'),
        (dict(arch=dict(depth=0, channels=8)), 'needs depth and channels, positive whole numbers'),
        (dict(drop_path_rate=1.0), 'ConvNeXtIsotropic needs 0 <= drop_path_rate < 1'),
        (dict(layer_scale_init_value=-1.0), 'layer_scale_init_value >= 0'),
        (dict(frozen_layers=5), 'a stem and 3 blocks, use -1 to 4'),
        (dict(memory='none'), "ConvNeXtIsotropic has no memory='none'"),
        (dict(memory='lean', with_cp=True), "with_cp=True is memory='checkpoint'"),
    ],
)
def test_bad_arguments(options, sentence):
    with pytest.raises(UserError, match=sentence):
        ConvNeXtIsotropic(**{'arch': MICRO, **options})


def test_small_image():
    with pytest.raises(UserError, match='ConvNeXtIsotropic got an image of 15x64, it needs at least 16x16'):
        ConvNeXtIsotropic(MICRO)(torch.randn(1, 3, 15, 64))


# ---- weights


def file_of(path, **options):
    state = fill(isotropic_layout(depth=3, width=8, **options))
    torch.save({'model': state}, path)
    return state


@pytest.mark.parametrize('layer_scale', [False, True])
@torch.no_grad()
def test_official_weights_give_the_plain_formula(layer_scale, tmp_path):
    """By init_cfg, by load_state_dict and by load_state_dict of its own state: the same, and equal to the formula."""
    state = file_of(tmp_path / 'iso.pth', layer_scale=layer_scale)
    options = dict(arch=MICRO, layer_scale_init_value=float(layer_scale))
    image = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    new_norm = {'norm0.weight': torch.ones(8), 'norm0.bias': torch.zeros(8)}
    expected, used = plain(image, {**state, **new_norm}, depth=3)
    assert set(state) - used == {'norm.weight', 'norm.bias', 'head.weight', 'head.bias'}
    by_init_cfg = ConvNeXtIsotropic(
        **options, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'iso.pth'))
    ).eval()
    by_init_cfg.init_weights()
    by_state = ConvNeXtIsotropic(**options).eval()
    by_state.load_state_dict({'model': state})
    again = ConvNeXtIsotropic(**options).eval()
    again.load_state_dict(by_state.state_dict())
    for model in (by_init_cfg, by_state, again):
        torch.testing.assert_close(model(image)[0], expected, rtol=1e-4, atol=1e-5)


def test_weights_reach_it_inside_a_model(tmp_path, logged):
    """By load_from, bare and as the backbone of a detector; the hook fits it once."""
    state = fill(isotropic_layout(depth=3, width=8))
    wrapped = {f'backbone.{name}': value for name, value in state.items() if not name.startswith(('norm.', 'head.'))}
    backbone = dict(type='ConvNeXtIsotropic', arch=MICRO, layer_scale_init_value=1.0)
    for checkpoint in ({'model': state}, {'state_dict': wrapped}):
        torch.save(checkpoint, tmp_path / 'iso.pth')
        runner = runner_of(tmp_path, backbone=backbone, load_from=str(tmp_path / 'iso.pth'))
        logged.clear()
        runner.load_or_resume()
        assert_backbone(runner.model, wrapped)
        assert [line for line in logged if line.startswith('ConvNeXtIsotropic')] == [
            'ConvNeXtIsotropic dict(depth=3, channels=8): 29 of 29 tensors from an official isotropic file; norm0 '
            'start new, as they must for ImageNet weights'
        ]


@pytest.mark.parametrize(
    'change, sentence',
    [
        (
            lambda state: state.pop('blocks.2.norm.bias'),
            '1 tensors of the model are not in the file: blocks.2.norm.bia',
        ),
        (lambda state: state.update({'blocks.9.gamma': torch.ones(8)}), 'not in the model: model.blocks.9.gamma'),
        (lambda state: state.update({'blocks.0.grn.gamma': torch.ones(8)}), 'model: model.blocks.0.grn.gamma'),
        (lambda state: state.update({'stem.weight': torch.ones(8, 3, 8, 8)}), r'stem.weight \(8, 3, 8, 8\) for'),
        (
            lambda state: [state.pop(f'blocks.{i}.gamma') for i in range(3)],
            'set layer_scale_init_value=0 in the backbone, or give a file for layer_scale_init_value=1.0',
        ),
    ],
)
def test_weights_that_do_not_fit(change, sentence):
    state = fill(isotropic_layout(depth=3, width=8))
    change(state)
    with pytest.raises(UserError, match=sentence):
        ConvNeXtIsotropic(MICRO, layer_scale_init_value=1.0).load_state_dict({'model': state}, strict=False)


def test_weights_of_the_other_kind():
    staged = fill(official_layout(dict(depths=[1, 1, 2, 1], channels=[8, 16, 24, 32]), False))
    with pytest.raises(UserError, match="those of a ConvNeXt, arch=.* model is a ConvNeXtIsotropic: set type='ConvN"):
        ConvNeXtIsotropic(MICRO).load_state_dict(staged)
    with pytest.raises(UserError, match=r"type='ConvNeXtIsotropic', arch=dict\(depth=3, channels=8\) in the backbone"):
        ConvNeXt().load_state_dict(fill(isotropic_layout(depth=3, width=8)))


def test_one_input_channel(logged):
    state = fill(isotropic_layout(depth=3, width=8))
    model = ConvNeXtIsotropic(MICRO, in_channels=1, layer_scale_init_value=1.0)
    model.load_state_dict(state)
    torch.testing.assert_close(model.stem.weight, state['stem.weight'].sum(1, keepdim=True))
    assert 'the stem is adapted from 3 to 1 input channels' in logged[-1]


def test_convert(tmp_path, tool):
    state = file_of(tmp_path / 'iso.pth', output_norm=True)
    for to in ('ours', 'official'):
        message, text = tool('convert_checkpoint', tmp_path / 'iso.pth', tmp_path / f'{to}.pth', '--to', to)
        assert message is None and 'read back and equal bit by bit' in text
        (back,) = torch.load(tmp_path / f'{to}.pth').values()
        assert back.keys() == state.keys() and all(torch.equal(back[name], state[name]) for name in state)
    message, _ = tool('convert_checkpoint', tmp_path / 'iso.pth', tmp_path / 'out.pth', '--to', 'timm')
    assert message.startswith('error: the timm format has no name for 29 tensors of ')
    message, text = tool('convert_checkpoint', tmp_path / 'iso.pth', '--inspect')
    assert message is None and 'arguments  arch=dict(depth=3, channels=8), layer_scale_init_value=1.0, in_ch' in text
    assert 'loads      ConvNeXtIsotropic dict(depth=3, channels=8): 31 of 31 tensors' in text
