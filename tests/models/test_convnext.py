"""The backbone against timm and transformers, and its contract over every argument."""

import copy

import pytest
import torch
from mmengine.registry import MODELS
from torch import nn

from convnext_dense import ARCHS, ConvNeXt, UserError

MICRO = dict(depths=[1, 1, 2, 1], channels=[8, 16, 24, 32])


def redraw(model: nn.Module, seed: int = 0) -> None:
    """New random values for every tensor, none near its initial value: at a layer scale of 1e-6 no block would show."""
    generator = torch.Generator().manual_seed(seed)
    for name, param in model.named_parameters():
        noise = torch.randn(param.shape, generator=generator)
        if param.ndim > 1:
            value = noise / param[0].numel() ** 0.5
        elif name.endswith('bias'):
            value = 0.1 * noise
        elif '.grn.' in name:
            value = 0.5 * noise
        elif name.endswith('gamma'):
            value = 0.5 + 0.1 * noise
        else:
            value = 1 + 0.2 * noise
        param.data.copy_(value)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def timm_name(name: str) -> str:
    """Our parameter name in timm's ``features_only`` ConvNeXt."""
    for ours, theirs in (
        ('downsample_layers.0.', 'stem_'),
        ('.dwconv.', '.conv_dw.'),
        ('.pwconv1.', '.mlp.fc1.'),
        ('.pwconv2.', '.mlp.fc2.'),
        ('.grn.gamma', '.mlp.grn.weight'),
        ('.grn.beta', '.mlp.grn.bias'),
    ):
        name = name.replace(ours, theirs)
    part, number, *rest = name.split('.')
    if part == 'downsample_layers':
        return '.'.join((f'stages_{number}', 'downsample', *rest))
    if part == 'stages':
        return '.'.join((f'stages_{number}', 'blocks', *rest))
    return name


def transformers_name(name: str) -> str:
    """Our parameter name in transformers' ``ConvNextBackbone``."""
    for ours, theirs in (
        ('downsample_layers.0.0', 'embeddings.patch_embeddings'),
        ('.gamma', '.layer_scale_parameter'),
        ('downsample_layers.0.1', 'embeddings.layernorm'),
        ('.norm.', '.layernorm.'),
    ):
        name = name.replace(ours, theirs)
    part, *rest = name.split('.')
    if part.startswith('norm'):
        return '.'.join(('hidden_states_norms', f'stage{int(part[-1]) + 1}', *rest))
    if part == 'downsample_layers':
        return '.'.join(('encoder.stages', rest[0], 'downsampling_layer', *rest[1:]))
    if part == 'stages':
        return '.'.join(('encoder.stages', rest[0], 'layers', *rest[1:]))
    return name


class TimmFeatures(nn.Module):
    """timm's features have no output norms: ours are put behind them."""

    def __init__(self, name: str, ours: ConvNeXt) -> None:
        super().__init__()
        import timm

        options = dict(ls_init_value=1.0) if 'v2' not in name else {}
        self.features = timm.create_model(name, features_only=True, out_indices=(0, 1, 2, 3), **options)
        self.norms = nn.ModuleList(nn.LayerNorm(c, eps=1e-6) for c in ours.channels)

    def param(self, name: str) -> nn.Parameter:
        if name.startswith('norm'):
            return self.norms.get_parameter(f'{name[4]}{name[5:]}')
        return self.features.get_parameter(timm_name(name))

    def forward(self, x):
        return [norm(f.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) for norm, f in zip(self.norms, self.features(x))]


class TransformersFeatures(nn.Module):
    def __init__(self, ours: ConvNeXt) -> None:
        super().__init__()
        from transformers import ConvNextBackbone, ConvNextConfig

        self.backbone = ConvNextBackbone(
            ConvNextConfig(
                depths=list(ours.depths),
                hidden_sizes=list(ours.channels),
                layer_norm_eps=1e-6,
                out_features=['stage1', 'stage2', 'stage3', 'stage4'],
            )
        )

    def param(self, name: str) -> nn.Parameter:
        return self.backbone.get_parameter(transformers_name(name))

    def forward(self, x):
        return self.backbone(x).feature_maps


@pytest.mark.parametrize(
    'peer, options, size, training',
    [
        ('timm', {}, (64, 96), True),
        ('timm', {}, (67, 93), False),
        ('transformers', {}, (64, 96), True),
        ('transformers', {}, (67, 93), False),
        ('timm v2', dict(use_grn=True, layer_scale_init_value=0.0), (67, 93), True),
    ],
)
def test_equals_peer(peer, options, size, training):
    torch.manual_seed(0)
    ours = ConvNeXt('tiny', **options).train(training)
    redraw(ours)
    reference = {
        'timm': lambda: TimmFeatures('convnext_tiny', ours),
        'timm v2': lambda: TimmFeatures('convnextv2_tiny', ours),
        'transformers': lambda: TransformersFeatures(ours),
    }[peer]().train(training)
    assert sum(p.numel() for p in reference.parameters()) == sum(p.numel() for p in ours.parameters())
    for name, param in ours.named_parameters():
        reference.param(name).data.copy_(param.data.view_as(reference.param(name)))
    image = torch.randn(2, 3, *size)
    outputs, expected = ours(image), reference(image)
    weights = [torch.randn_like(out) for out in outputs]
    sum((w * out).sum() for w, out in zip(weights, outputs)).backward()
    sum((w * out).sum() for w, out in zip(weights, expected)).backward()
    assert len(outputs) == len(expected) == 4
    for out, want in zip(outputs, expected):
        assert relative(out, want) <= 1e-5
    for name, param in ours.named_parameters():
        want = reference.param(name).grad
        assert relative(param.grad, want.view_as(param)) <= 2e-5, name


# Paper Table 1 (28.6 M, 50 M, 89 M, 198 M, 350 M) and V2 paper Table 9 (atto to nano, huge), with the final norm and
# the classifier that detection leaves out.
@pytest.mark.parametrize(
    'arch, grn, millions, digits',
    [
        ('tiny', False, 28.6, 1),
        ('small', False, 50, 0),
        ('base', False, 89, 0),
        ('large', False, 198, 0),
        ('xlarge', False, 350, 0),
        ('atto', True, 3.7, 1),
        ('femto', True, 5.2, 1),
        ('pico', True, 9.1, 1),
        ('nano', True, 15.6, 1),
        ('huge', True, 660, 0),
    ],
)
def test_parameter_count(arch, grn, millions, digits):
    with torch.device('meta'):
        model = ConvNeXt(arch, out_indices=3, use_grn=grn, layer_scale_init_value=0 if grn else 1e-6)
    width = model.channels[-1]
    count = sum(p.numel() for p in model.parameters()) + 1000 * width + 1000  # norm3 stands for the final norm
    assert round(count / 1e6, digits) == millions


@pytest.mark.parametrize(
    'out_indices, stages',
    [((0, 1, 2, 3), (0, 1, 2, 3)), ([1, 3], (1, 3)), (2, (2,)), (-1, (3,)), ((-4, -2), (0, 2)), ([0], (0,))],
)
@pytest.mark.parametrize('size', [(32, 32), (65, 97)])
def test_outputs(out_indices, stages, size):
    model = MODELS.build(dict(type='ConvNeXt', arch=MICRO, out_indices=out_indices))
    outputs = model(torch.randn(2, 3, *size))
    assert isinstance(outputs, tuple)
    assert [out.shape for out in outputs] == [
        (2, MICRO['channels'][i], size[0] // 4 // 2**i, size[1] // 4 // 2**i) for i in stages
    ]
    assert all(out.is_contiguous() for out in outputs)
    assert len(model.stages) == stages[-1] + 1
    assert {name for name, _ in model.named_children() if name.startswith('norm')} == {f'norm{i}' for i in stages}
    sum(out.square().mean() for out in outputs).backward()
    assert all(p.grad is not None for p in model.parameters()), 'DDP would look for unused parameters'


def test_subset_equals_the_full_model():
    full = ConvNeXt(MICRO).eval()
    redraw(full)
    part = ConvNeXt(MICRO, out_indices=(0, 2)).eval()
    part.load_state_dict(full.state_dict())
    image = torch.randn(1, 3, 64, 64)
    for out, want in zip(part(image), (full(image)[0], full(image)[2])):
        torch.testing.assert_close(out, want, rtol=0, atol=0)


def shifted_sum(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, dilation: int, before: int) -> torch.Tensor:
    """A dilated convolution that keeps the size, tap by tap; ``before``: taps left of and above each position."""
    groups = x.shape[1] // weight.shape[1]
    out = bias.view(1, -1, 1, 1).repeat(x.shape[0], 1, *x.shape[2:])
    for dy, dx in [(dy, dx) for dy in range(weight.shape[2]) for dx in range(weight.shape[3])]:
        y, x_ = (dy - before) * dilation, (dx - before) * dilation
        moved = torch.zeros_like(x)
        for row in range(x.shape[2]):
            for col in range(x.shape[3]):
                if 0 <= row + y < x.shape[2] and 0 <= col + x_ < x.shape[3]:
                    moved[:, :, row, col] = x[:, :, row + y, col + x_]
        tap = weight[:, :, dy, dx]
        out = out + (moved * tap.view(1, -1, 1, 1) if groups > 1 else torch.einsum('nchw,oc->nohw', moved, tap))
    return out


@pytest.mark.parametrize(
    'output_stride, strides, dilations',
    [
        (32, (4, 8, 16, 32), (1, 1, 1, 1)),
        (16, (4, 8, 16, 16), (1, 1, 1, 2)),
        (8, (4, 8, 8, 8), (1, 1, 2, 4)),
        (4, (4, 4, 4, 4), (1, 2, 4, 8)),
    ],
)
@pytest.mark.parametrize('size', [(64, 96), (37, 45)])
def test_output_stride(output_stride, strides, dilations, size):
    """Against the stages written out tap by tap, with the same weights."""
    plain, model = ConvNeXt(MICRO), ConvNeXt(MICRO, output_stride=output_stride)
    redraw(plain)
    assert plain.strides == (4, 8, 16, 32) and model.strides == strides
    model.load_state_dict(plain.state_dict())  # strict: the same names and shapes
    image = torch.randn(1, 3, *size)
    outputs = model(image)
    assert [tuple(out.shape[2:]) for out in outputs] == [(size[0] // s, size[1] // s) for s in strides]
    x = image
    for i, dilation in enumerate(dilations):
        if dilation == 1:
            x = plain.downsample_layers[i](x)
        else:
            norm, conv = plain.downsample_layers[i]
            x = shifted_sum(norm(x), conv.weight, conv.bias, dilation // 2, before=0)
        for block in plain.stages[i]:
            y = shifted_sum(x, block.dwconv.weight, block.dwconv.bias, dilation, before=3)
            y = block.pwconv2(block.act(block.pwconv1(block.norm(y.permute(0, 2, 3, 1)))))
            x = x + (block.gamma * y).permute(0, 3, 1, 2)
        torch.testing.assert_close(outputs[i], getattr(plain, f'norm{i}')(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('output_stride', [16, 8, 4])
def test_output_stride_adds_positions_and_changes_none(output_stride):
    """Every other position (and every fourth …) of the dilated features is the feature without dilation."""
    plain, model = ConvNeXt(MICRO), ConvNeXt(MICRO, output_stride=output_stride)
    redraw(plain)
    model.load_state_dict(plain.state_dict())
    image = torch.randn(2, 3, 64, 96)
    for out, want, stride in zip(model(image), plain(image), model.strides):
        step = out.shape[2] // want.shape[2]
        torch.testing.assert_close(out[:, :, ::step, ::step], want, rtol=1e-4, atol=1e-5)
        assert stride * step in (4, 8, 16, 32)


def test_output_stride_of_other_stems():
    assert ConvNeXt(MICRO, stem_patch_size=2).strides == (2, 4, 8, 16)
    assert ConvNeXt(MICRO, stem_patch_size=2, output_stride=4).strides == (2, 4, 4, 4)
    assert ConvNeXt(MICRO, output_stride=8, out_indices=(3,))(torch.randn(1, 3, 8, 8))[0].shape == (1, 32, 1, 1)


def test_roi_align_reads_our_memory():
    """mmcv's RoIAlign ignores strides: channels_last features would give wrong numbers without an error."""
    ops = pytest.importorskip('mmcv.ops')
    from torchvision.ops import roi_align

    model = ConvNeXt(MICRO)
    redraw(model)
    feature = model(torch.randn(1, 3, 96, 96))[1]
    rois = torch.tensor([[0, 3.0, 5.0, 60.0, 70.0], [0, 20.0, 10.0, 90.0, 40.0]])
    got = ops.RoIAlign(7, spatial_scale=1 / 8, sampling_ratio=2)(feature, rois)
    want = roi_align(feature, rois, 7, spatial_scale=1 / 8, sampling_ratio=2, aligned=True)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_drop_path_grows_linearly_and_drops_whole_samples():
    model = ConvNeXt('tiny', drop_path_rate=0.4)
    rates = [block.drop_path.rate for stage in model.stages for block in stage]
    assert rates == pytest.approx([0.4 * i / 17 for i in range(18)])
    assert [b.drop_path.rate for b in ConvNeXt('tiny', out_indices=0, drop_path_rate=0.4).stages[0]] == pytest.approx(
        rates[:3]
    ), 'the rates are those of the whole arch'
    drop = model.stages[-1][-1].drop_path
    torch.manual_seed(0)
    out = drop.train()(torch.ones(4000, 2, 3, 3))
    per_sample = out.flatten(1)
    assert (per_sample == per_sample[:, :1]).all()
    assert per_sample[:, 0].unique().tolist() == [0.0, pytest.approx(1 / 0.6)]
    assert per_sample[:, 0].mean().item() == pytest.approx(1, abs=0.05)
    assert torch.equal(drop.eval()(torch.ones(3, 2)), torch.ones(3, 2))


@pytest.mark.parametrize('options', [{}, dict(use_grn=True, layer_scale_init_value=0), dict(drop_path_rate=0.5)])
def test_checkpointing_changes_nothing(options):
    plain, saving = ConvNeXt(MICRO, **options), ConvNeXt(MICRO, with_cp=True, **options)
    redraw(plain)
    saving.load_state_dict(plain.state_dict())
    image = torch.randn(2, 3, 64, 64)
    for model in (plain, saving):
        torch.manual_seed(1)  # the same samples are dropped
        sum(out.square().sum() for out in model.train()(image)).backward()
    for (name, a), (_, b) in zip(plain.named_parameters(), saving.named_parameters()):
        torch.testing.assert_close(a.grad, b.grad, msg=name)


@pytest.mark.parametrize('frozen', [-1, 0, 1, 2, 4])
def test_frozen_stages(frozen):
    model = ConvNeXt(MICRO, frozen_stages=frozen, drop_path_rate=0.2)
    for module in (model, model.train(), model.eval().train(True)):
        trained = {name for name, p in module.named_parameters() if p.requires_grad}
        expected = {
            name
            for name, _ in module.named_parameters()
            if name.startswith('norm') or int(name.split('.')[1]) >= max(frozen, 0)
        }
        assert trained == expected
        assert [stage.training for stage in module.stages] == [i >= max(frozen, 0) for i in range(4)]
    sum(out.sum() for out in model(torch.randn(1, 3, 32, 32))).backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == trained


def test_modes_return_the_module():
    model = ConvNeXt(MICRO)
    assert model.train() is model and model.eval() is model and not model.training


def test_mmpretrain_config_needs_only_another_type():
    """The arguments of mmdet's and mmpretrain's own ConvNeXt configs."""
    cfg = dict(
        type='ConvNeXt',
        arch='tiny',
        in_channels=3,
        stem_patch_size=4,
        norm_cfg=dict(type='LN2d', eps=1e-5),
        act_cfg=dict(type='GELU'),
        linear_pw_conv=True,
        use_grn=False,
        drop_path_rate=0.4,
        layer_scale_init_value=1.0,
        out_indices=[0, 1, 2, 3],
        frozen_stages=0,
        gap_before_final_norm=False,
        with_cp=False,
        init_cfg=None,
    )
    before = copy.deepcopy(cfg)
    model = MODELS.build(cfg)
    assert cfg == before
    assert model.norm0.eps == model.stages[0][0].norm.eps == 1e-5


def test_official_initialisation():
    torch.manual_seed(0)
    model = ConvNeXt('atto')
    model.init_weights()
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            assert not module.bias.any()
    weights = torch.cat([m.weight.flatten() for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))])
    assert weights.std().item() == pytest.approx(0.02, rel=0.01)
    assert model.stages[0][0].gamma.tolist() == [pytest.approx(1e-6)] * 40


@pytest.mark.parametrize(
    'options, sentence',
    [
        (dict(arch='giant'), 'no arch .giant.: use one of atto, femto'),
        (dict(arch=dict(depths=[1, 1, 1, 1])), r'needs the keys depths and channels \(or dims\), found'),
        (dict(arch=dict(depths=[1, 1, 1], dims=[8, 8, 8, 8])), '4 positive whole numbers in depths'),
        (dict(out_indices=(0, 4)), r'out_indices=\(0, 4\): give one or more of the stages 0 to 3'),
        (dict(out_indices=(1, 0)), 'ascending'),
        (dict(out_indices=(1, 1)), 'each once'),
        (dict(out_indices=()), 'one or'),
        (dict(out_indices=True), 'out_indices=True'),
        (dict(out_indices=-5), 'out_indices=-5'),
        (dict(frozen_stages=5), 'use -1 to 4'),
        (dict(frozen_stages=2, out_indices=0), 'use -1 to 1'),
        (dict(output_stride=12), 'output_stride=12: use one of 4, 8, 16, 32'),
        (dict(kernel_size=6), 'odd kernel_size, or one for each of the 4 stages, found 6'),
        (dict(kernel_size=-1), 'odd kernel_size'),
        (dict(drop_path_rate=1.0), '0 <= drop_path_rate < 1'),
        (dict(layer_scale_init_value=-1), '>= 0'),
        (dict(gap_before_final_norm=True), 'gap_before_final_norm=False'),
        (dict(norm_cfg=dict(type='BN')), 'use one of LN2d, LN, RMSNorm, SimpleNorm as type'),
        (dict(act_cfg=dict(type='ReLU')), 'GELU'),
        (
            dict(pretrained='a.pth', init_cfg=dict(type='Pretrained', checkpoint='b.pth')),
            'both pretrained and init_cfg',
        ),
    ],
)
def test_bad_arguments(options, sentence):
    with pytest.raises(UserError, match=sentence):
        ConvNeXt(**{'arch': MICRO, **options})


@pytest.mark.parametrize('size', [(31, 64), (64, 31)])
def test_small_image(size):
    with pytest.raises(UserError, match=f'{size[0]}x{size[1]}, it needs at least 32x32'):
        ConvNeXt(MICRO)(torch.randn(1, 3, *size))


def test_dims_is_channels():
    model = ConvNeXt(dict(depths=MICRO['depths'], dims=MICRO['channels']))
    assert model.channels == tuple(MICRO['channels'])


@pytest.mark.parametrize('arch', ARCHS)
def test_every_arch_runs(arch):
    with torch.device('meta'):
        model = ConvNeXt(arch)
        shapes = [tuple(out.shape) for out in model(torch.empty(1, 3, 64, 64))]
    assert shapes == [(1, channels, 16 >> i, 16 >> i) for i, channels in enumerate(ARCHS[arch]['channels'])]
