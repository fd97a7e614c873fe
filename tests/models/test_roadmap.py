"""Every step of the roadmap: against a plain formula, torchvision and our ConvNeXt, and its published counts."""

import pytest
import torch
import torch.nn.functional as F
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS
from torch import Tensor, nn

from convnext_dense import ConvNeXt, ConvNeXtRoadmap, UserError
from convnext_dense.export import Features, check_onnx, export_onnx
from convnext_dense.roadmap_table import NOTE, PUBLISHED, Classifier, count_step, rows, text_lines

# Step; T: GFLOPs counted, published, top-1, parameters; B: the same. Published figures from the paper's appendix.
FIGURES = """
resnet                 4.0892 4.09  76.13 25557032  15.0075 15.01 78.20 64673832
resnet_enhanced        4.0892 4.09  78.82 25557032  15.0075 15.01 81.14 64673832
stage_ratio            4.5259 4.53  79.36 28628520  14.5184 14.52 81.33 83066332
patchify_stem          4.4175 4.42  79.51 28622120  14.3762 14.38 81.59 83057932
depthwise_conv         2.3495 2.35  78.28 15722600   7.2344  7.23 80.54 42585472
increase_width         5.2680 5.27  80.50 33760936  16.7639 16.76 81.85 96526568
inverting_dimensions   4.6444 4.64  80.64 25851400  15.6794 15.68 82.64 83700072
move_up_depthwise_conv 4.0651 4.07  79.92 25625416  14.6270 14.63 82.04 83094632
kernel_5               4.0973 4.10  80.35 25720648  14.6989 14.70 82.32 83369064
kernel_7               4.1456 4.15  80.57 25863496  14.8066 14.81 82.30 83780712
kernel_9               4.2100 4.21  80.57 26053960  14.9503 14.95 82.27 84329576
kernel_11              4.2906 4.29  80.47 26292040  15.1300 15.13 82.18 85015656
relu_to_gelu           4.1456 4.15  80.62 25863496  14.8066 14.81 82.19 83780712
fewer_activations      4.1456 4.15  81.27 25863496  14.8066 14.81 82.71 83780712
fewer_norms            4.1456 4.15  81.41 25797256  14.8066 14.81 83.17 83600232
bn_to_ln               4.1456 4.46  81.47 25836328  14.8066 14.81 83.35 83707624
separate_downsampling  4.4555 4.49  81.97 28582504  15.3547 15.35 83.60 88573416
"""
TABLE = {line.split()[0]: line.split()[1:] for line in FIGURES.strip().splitlines()}
STEPS = tuple(TABLE)
NETWORKS = STEPS[1:]  # the two recipes of ResNet train one network
MICRO = dict(width=8, depths=(1, 1, 2, 1))


def redraw(model: nn.Module) -> None:
    """New random values for every tensor, none near its initial value, at which a missing layer would not show."""
    generator = torch.Generator().manual_seed(0)
    for name, value in model.state_dict().items():
        if name.endswith('num_batches_tracked'):
            continue
        noise = torch.randn(value.shape, generator=generator)
        if value.ndim > 1:
            value.copy_(noise / value[0].numel() ** 0.5)
        elif name.endswith(('bias', 'running_mean')):
            value.copy_(0.1 * noise)
        else:
            value.copy_(1 + 0.2 * noise.tanh())


def relative(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


class Weights:
    """The tensors of a model by name; remembers which were read."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state, self.used = state, set()

    def __call__(self, name: str) -> Tensor:
        self.used.add(name)
        return self.state[name]

    def conv(self, x: Tensor, name: str, stride: int = 1, padding: int = 0, depthwise=False, bias=False) -> Tensor:
        return F.conv2d(
            x,
            self(f'{name}.weight'),
            self(f'{name}.bias') if bias else None,
            stride,
            padding,
            groups=x.shape[1] if depthwise else 1,
        )

    def batch_norm(self, x: Tensor, name: str) -> Tensor:
        mean, variance, weight, bias = (
            self(f'{name}.{part}').view(1, -1, 1, 1) for part in ('running_mean', 'running_var', 'weight', 'bias')
        )
        return (x - mean) / (variance + 1e-5).sqrt() * weight + bias

    def layer_norm(self, x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        variance = centred.square().mean(1, keepdim=True)
        weight, bias = (self(f'{name}.{part}').view(1, -1, 1, 1) for part in ('weight', 'bias'))
        return centred / (variance + 1e-6).sqrt() * weight + bias


def plain_block(step: str, w: Weights, name: str, x: Tensor, stride: int, has_shortcut: bool) -> Tensor:
    """One block of a step, written from the paper; what each step does to it is one line."""
    at = STEPS.index(step)
    kernel = {'kernel_5': 5, 'kernel_7': 7, 'kernel_9': 9, 'kernel_11': 11}.get(step, 7 if at > 11 else 3)
    act = F.relu if at < 12 else F.gelu
    norm = w.batch_norm if at < 15 else w.layer_norm
    bias = at >= 15
    conv1, conv2, conv3 = (f'{name}.conv{i}' for i in (1, 2, 3))
    if at < 7:  # the spatial convolution in the middle: a bottleneck, or its inversion
        y = act(norm(w.conv(x, conv1), f'{name}.norm1'))
        y = act(norm(w.conv(y, conv2, stride, kernel // 2, depthwise=at >= 4), f'{name}.norm2'))
        y = norm(w.conv(y, conv3), f'{name}.norm3')
    else:
        y = norm(w.conv(x, conv1, stride, kernel // 2, depthwise=True, bias=bias), f'{name}.norm1')
        y = y if at >= 13 else act(y)
        y = w.conv(y, conv2, bias=bias)
        y = y if at >= 14 else norm(y, f'{name}.norm2')
        y = w.conv(act(y), conv3, bias=bias)
        y = y if at >= 14 else norm(y, f'{name}.norm3')
    if has_shortcut:
        x = norm(w.conv(x, f'{name}.shortcut.0', stride), f'{name}.shortcut.1')
    return x + y if at >= 13 else act(x + y)


def plain_network(step: str, w: Weights, image: Tensor, depths: tuple[int, ...]) -> list[Tensor]:
    """The features of all stages, each with its LayerNorm."""
    at = STEPS.index(step)
    stem = 'downsample_layers.0'
    if at < 3:
        x = F.relu(w.batch_norm(w.conv(image, f'{stem}.0', 2, 3), f'{stem}.1'))
        x = F.max_pool2d(x, 3, 2, 1)
    else:
        x = w.conv(image, f'{stem}.0', 4, bias=True)
    if step == 'separate_downsampling':
        x = w.layer_norm(x, f'{stem}.1')
    outputs = []
    for i, depth in enumerate(depths):
        if i > 0 and step == 'separate_downsampling':
            x = w.conv(w.layer_norm(x, f'downsample_layers.{i}.0'), f'downsample_layers.{i}.1', 2, bias=True)
        for j in range(depth):
            first = j == 0 and step != 'separate_downsampling'
            stride = 2 if first and i > 0 else 1
            has_shortcut = first and (i > 0 or at < 6)
            x = plain_block(step, w, f'stages.{i}.{j}', x, stride, has_shortcut)
        outputs.append(w.layer_norm(x, f'norm{i}'))
    return outputs


@pytest.mark.parametrize('step', NETWORKS)
def test_equals_the_plain_formula(step):
    """At the depths of the regime; every tensor of the state dict is used, so that none is too many."""
    model = ConvNeXtRoadmap(step, width=8).eval()
    redraw(model)
    model.double()
    depths = (3, 4, 6, 3) if step == 'resnet_enhanced' else (3, 3, 9, 3)
    weights = Weights(model.state_dict())
    image = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        outputs, expected = model(image), plain_network(step, weights, image, depths)
    assert len(outputs) == len(expected) == 4
    for out, want in zip(outputs, expected):
        assert out.shape == want.shape and relative(out, want) <= 1e-9
    unused = set(model.state_dict()) - weights.used
    assert all(name.endswith('num_batches_tracked') for name in unused)


def test_the_two_recipes_train_one_network():
    first, second = (ConvNeXtRoadmap(step, **MICRO) for step in STEPS[:2])
    assert first.design == second.design and str(first) == str(second)


@pytest.mark.parametrize('training', [False, True])
def test_first_step_is_resnet_50(training):
    """torchvision's, with its weights; its features get our output norms."""
    torchvision = pytest.importorskip('torchvision')
    theirs = torchvision.models.resnet50(weights=None)
    redraw(theirs)
    state = {}
    for name, value in theirs.state_dict().items():
        name = name.replace('conv1', 'downsample_layers.0.0') if name.startswith('conv1') else name
        name = name.replace('bn1', 'downsample_layers.0.1') if name.startswith('bn1') else name
        if name.startswith('layer'):
            name = f'stages.{int(name[5]) - 1}{name[6:]}'.replace('.bn', '.norm').replace('.downsample.', '.shortcut.')
        state[name] = value
    ours = ConvNeXtRoadmap('resnet')
    missing, unknown = ours.load_state_dict(state, strict=False)
    assert unknown == ['fc.weight', 'fc.bias'] and {name.split('.')[0] for name in missing} == {
        f'norm{i}' for i in range(4)
    }
    ours.double().train(training), theirs.double().train(training)
    image = torch.randn(2, 3, 75, 93, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(image))))
        outputs = ours(image)
        for i, out in enumerate(outputs):
            x = getattr(theirs, f'layer{i + 1}')(x)
            want = F.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2], eps=1e-6).permute(0, 3, 1, 2)
            assert relative(out, want) <= 1e-5


def test_last_step_is_convnext_tiny():
    ours, last = ConvNeXt('tiny', layer_scale_init_value=0), ConvNeXtRoadmap('separate_downsampling')
    redraw(ours)
    names = {'.dwconv.': '.conv1.', '.norm.': '.norm1.', '.pwconv1.': '.conv2.', '.pwconv2.': '.conv3.'}
    state = {}
    for name, value in ours.state_dict().items():
        for official, here in names.items():
            name = name.replace(official, here)
        state[name] = value.view(last.state_dict()[name].shape)  # a Linear is a 1x1 convolution
    last.load_state_dict(state)
    image = torch.randn(2, 3, 75, 93, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for out, want in zip(last(image), ours(image), strict=True):
            assert relative(out, want) <= 1e-5
    assert [ours.layer_id(name, 'layer_wise') for name, _ in ours.named_parameters()] == [
        last.layer_id(name, 'layer_wise') for name, _ in last.named_parameters()
    ]


@pytest.fixture(scope='module')
def counted() -> dict:
    return {(row.regime, row.step): row for row in rows()}


@pytest.mark.parametrize('step', STEPS)
@pytest.mark.parametrize('regime', ['T', 'B'])
def test_counts(regime, step, counted):
    gflops, published, top1, params = TABLE[step][:4] if regime == 'T' else TABLE[step][4:]
    row = counted[regime, step]
    assert f'{row.flops / 1e9:.4f}' == gflops and row.params == int(params)
    assert (row.published_gflops, row.published_top1) == (published, top1)
    assert abs(row.difference) <= 0.005, 'what is printed is rounded to two decimals'
    slipped = {('T', 'bn_to_ln'): '4.15', ('T', 'separate_downsampling'): '4.46'}
    assert row.compared_gflops == slipped.get((regime, step), published)
    assert row.is_slipped == ((regime, step) in slipped)


def test_32_networks_and_34_rows(counted):
    assert len(counted) == 34 and [len(steps) for steps in PUBLISHED.values()] == [17, 17]
    with torch.device('meta'):
        built = {str(ConvNeXtRoadmap(step, regime, width=8, depths=(1, 1, 1, 1))) for step in STEPS for regime in 'T'}
    assert len(built) == 14, 'at one width and depth; two more steps change those alone'
    assert len({(row.flops, row.params, row.step in ('resnet', 'resnet_enhanced') or row.step) for row in rows()}) == 32


def test_counting_agrees_with_the_counter_of_torch():
    from torch.utils.flop_counter import FlopCounterMode

    model = Classifier('move_up_depthwise_conv', 'T').to('meta').eval()
    with FlopCounterMode(display=False) as theirs, torch.no_grad():
        model(torch.empty(1, 3, 224, 224, device='meta'))
    assert count_step('move_up_depthwise_conv', 'T')[0] == theirs.get_total_flops() // 2


def test_tables_for_a_terminal(counted):
    lines = list(text_lines())
    assert [line.split() for line in lines if line.startswith('BN to LN')] == [
        ['BN', 'to', 'LN', '4.1456', '4.46', '(*)', '-0.0044', '81.47', '25,836,328'],
        ['BN', 'to', 'LN', '14.8066', '14.81', '-0.0034', '83.35', '83,707,624'],
    ]
    assert len(lines) == 2 * (17 + 2) + 3 and NOTE in lines


@pytest.mark.parametrize('step', NETWORKS)
def test_training_step(step):
    model = ConvNeXtRoadmap(step, drop_path_rate=0.1, **MICRO).train()
    before = {name: param.clone() for name, param in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    outputs = model(torch.randn(4, 3, 64, 64))
    assert all(out.is_contiguous() for out in outputs)
    torch.manual_seed(0)
    # Weighted, since the mean of a LayerNorm is a constant.
    loss = sum((out * torch.randn_like(out)).mean() for out in outputs)
    loss.backward()
    optimizer.step()
    assert [name for name, param in model.named_parameters() if torch.equal(param, before[name])] == []


@pytest.mark.parametrize('step', NETWORKS)
def test_export(step):
    model = ConvNeXtRoadmap(step, width=8, depths=(1, 1, 1, 1)).eval()
    redraw(model)
    image = torch.randn(1, 3, 71, 133)
    program = torch.export.export(model, (image,))
    with torch.no_grad():
        for out, want in zip(program.module()(image), model(image), strict=True):
            torch.testing.assert_close(out, want)


@pytest.mark.slow
@pytest.mark.parametrize('step', NETWORKS)
def test_onnx_graph(step, tmp_path):
    """Of any batch, height and width."""
    pytest.importorskip('onnxscript')
    pytest.importorskip('onnxruntime')
    backbone = ConvNeXtRoadmap(step, **MICRO)
    redraw(backbone)
    model = Features(backbone).eval()
    export_onnx(model, tmp_path / 'model.onnx')
    assert check_onnx(model, tmp_path / 'model.onnx') <= 1e-5


@pytest.mark.parametrize('step', ['resnet', 'inverting_dimensions', 'separate_downsampling'])
@pytest.mark.parametrize('out_indices, stages', [((0, 1, 2, 3), (0, 1, 2, 3)), ([1, 3], (1, 3)), (-2, (2,))])
def test_outputs(step, out_indices, stages):
    model = MODELS.build(dict(type='ConvNeXtRoadmap', step=step, out_indices=out_indices, **MICRO))
    outputs = model(torch.randn(2, 3, 64, 96))
    factor = 4 if step == 'resnet' else 1
    assert model.channels == tuple(factor * 8 * 2**i for i in range(4)) and model.strides == (4, 8, 16, 32)
    assert [out.shape for out in outputs] == [(2, model.channels[i], 16 >> i, 24 >> i) for i in stages]
    assert {name for name, _ in model.named_children() if name.startswith('norm')} == {f'norm{i}' for i in stages}
    assert len(model.stages) == stages[-1] + 1
    sum(out.square().sum() for out in outputs).backward()
    assert all(param.grad is not None for param in model.parameters())


def test_sizes_of_the_regimes():
    """Depths and channels of the first block, the width and the last step."""
    found = {}
    with torch.device('meta'):
        for regime in 'TB':
            for step in ('resnet', 'stage_ratio', 'increase_width', 'separate_downsampling'):
                model = ConvNeXtRoadmap(step, regime)
                found[regime, step] = (model.depths, model.channels)
    assert found == {
        ('T', 'resnet'): ((3, 4, 6, 3), (256, 512, 1024, 2048)),
        ('T', 'stage_ratio'): ((3, 3, 9, 3), (256, 512, 1024, 2048)),
        ('T', 'increase_width'): ((3, 3, 9, 3), (384, 768, 1536, 3072)),
        ('T', 'separate_downsampling'): ((3, 3, 9, 3), (96, 192, 384, 768)),
        ('B', 'resnet'): ((3, 24, 36, 3), (256, 512, 1024, 2048)),
        ('B', 'stage_ratio'): ((3, 3, 27, 3), (336, 672, 1344, 2688)),
        ('B', 'increase_width'): ((3, 3, 27, 3), (512, 1024, 2048, 4096)),
        ('B', 'separate_downsampling'): ((3, 3, 27, 3), (128, 256, 512, 1024)),
    }


@pytest.mark.parametrize('step', ['resnet', 'bn_to_ln'])
def test_drop_path(step):
    model = ConvNeXtRoadmap(step, drop_path_rate=0.4, width=8)
    rates = [block.drop_path.rate for stage in model.stages for block in stage]
    assert rates == pytest.approx([0.4 * i / (len(rates) - 1) for i in range(16 if step == 'resnet' else 18)])


@pytest.mark.parametrize('frozen', [-1, 0, 1, 3])
@pytest.mark.parametrize('step', ['resnet', 'separate_downsampling'])
def test_frozen_stages(step, frozen):
    model = ConvNeXtRoadmap(step, frozen_stages=frozen, **MICRO).train()
    redraw(model)
    before = {name: value.clone() for name, value in model.state_dict().items() if 'running' in name}
    sum(out.square().sum() for out in model(torch.randn(2, 3, 32, 32))).backward()
    for name, param in model.named_parameters():
        stage = int(name.split('.')[1]) if not name.startswith('norm') else 9
        assert param.requires_grad == (param.grad is not None) == (stage >= frozen), name
    for name, value in before.items():
        stage = int(name.split('.')[1])
        assert torch.equal(model.state_dict()[name], value) == (stage < frozen), 'also their statistics'


def test_norm_eval_keeps_statistics():
    for norm_eval in (False, True):
        model = ConvNeXtRoadmap('stage_ratio', norm_eval=norm_eval, **MICRO).eval().train()
        before = {name: value.clone() for name, value in model.state_dict().items() if 'running' in name}
        model(torch.randn(2, 3, 32, 32))
        assert before
        assert all(torch.equal(model.state_dict()[name], value) == norm_eval for name, value in before.items())


def test_layer_decay():
    """The rule of ConvNeXt at ResNet's depths, 3-4-6-3; as exponents of the decay rate."""
    with torch.device('meta'):
        model = nn.ModuleDict(dict(backbone=ConvNeXtRoadmap('resnet'), head=nn.Conv2d(8, 8, 1)))
    cfg = dict(
        constructor='ConvNeXtLayerDecayConstructor',
        paramwise_cfg=dict(decay_rate=0.5),
        optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.05),
    )
    names = {id(param): name for name, param in model.named_parameters()}
    groups = build_optim_wrapper(model, cfg).optimizer.param_groups
    settings = {names[id(param)]: (group['lr'], group['weight_decay']) for group in groups for param in group['params']}
    assert len(settings) == len(names)
    exponents = {
        'downsample_layers.0.0.weight': 6,
        'downsample_layers.0.1.weight': 6,
        'stages.0.2.conv1.weight': 5,
        'stages.1.0.shortcut.0.weight': 4,
        'stages.1.3.conv1.weight': 4,
        'stages.2.0.conv1.weight': 3,
        'stages.2.2.norm1.bias': 3,
        'stages.2.3.conv1.weight': 2,
        'stages.2.5.conv3.weight': 2,
        'stages.3.0.conv1.weight': 1,
        'norm0.weight': 0,
        'norm3.bias': 0,
    }
    found = {name: settings[f'backbone.{name}'] for name in exponents}
    assert found == {
        name: (0.5**exponent, 0.05 if 'conv' in name or name.endswith('0.weight') and 'norm' not in name else 0.0)
        for name, exponent in exponents.items()
    }
    assert settings['head.weight'] == (1.0, 0.05)


def test_initialisation():
    torch.manual_seed(0)
    resnet, last = ConvNeXtRoadmap('resnet'), ConvNeXtRoadmap('separate_downsampling')
    conv = resnet.stages[2][1].conv2
    assert conv.bias is None and conv.weight.std().item() == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.02)
    conv = last.stages[2][1].conv2
    assert not conv.bias.any() and conv.weight.std().item() == pytest.approx(0.02, rel=0.02)


def write(tmp_path, state) -> dict:
    torch.save(dict(state_dict=state), tmp_path / 'weights.pth')
    return dict(type='Pretrained', checkpoint=str(tmp_path / 'weights.pth'))


@pytest.mark.parametrize('prefix', ['', 'backbone.'])
def test_pretrained_weights(prefix, tmp_path):
    """Of an ImageNet classifier without output norms, and of a detector with them."""
    trained = ConvNeXtRoadmap('stage_ratio', **MICRO).eval()
    redraw(trained)
    state = {prefix + name: value for name, value in trained.state_dict().items()}
    if not prefix:
        state = {name: value for name, value in state.items() if not name.startswith('norm')}
        state['head.weight'] = torch.zeros(10, 256)
    model = ConvNeXtRoadmap('stage_ratio', out_indices=(0, 2), init_cfg=write(tmp_path, state), **MICRO).eval()
    model.init_weights()
    image = torch.randn(1, 3, 64, 64)
    stages, expected = [], image
    for downsample, stage in zip(trained.downsample_layers, trained.stages):
        expected = stage(downsample(expected))
        stages.append(expected)
    for i, out in zip((0, 2), model(image)):
        norm = getattr(trained, f'norm{i}') if prefix else getattr(model, f'norm{i}')
        torch.testing.assert_close(out, norm(stages[i]))
    model.stages[0][0].conv1.weight.data.zero_()
    model.init_weights()
    assert not model.stages[0][0].conv1.weight.any(), 'once, as mmengine does'


@pytest.mark.parametrize(
    'change, sentence',
    [
        (lambda state: state.pop('stages.1.0.conv1.weight'), r"lacks \['stages.1.0.conv1.weight'\]"),
        (lambda state: state.pop('norm1.bias'), r"lacks \['norm1.bias'\]"),
        (lambda state: state.update(extra=torch.zeros(1)), r"has \['extra'\] besides"),
        (lambda state: state.update({'norm0.weight': torch.zeros(3)}), r"and \['norm0.weight'\] in other shapes"),
        (lambda state: state.clear(), 'holds 0 networks of the roadmap'),
    ],
)
def test_weights_that_do_not_fit(change, sentence, tmp_path):
    state = dict(ConvNeXtRoadmap('resnet', **MICRO).state_dict())
    change(state)
    model = ConvNeXtRoadmap('resnet', init_cfg=write(tmp_path, state), **MICRO)
    with pytest.raises(UserError, match=sentence):
        model.init_weights()


@pytest.mark.parametrize(
    'options, sentence',
    [
        (dict(step='resnext'), "no step 'resnext': use one of resnet, resnet_enhanced, stage_ratio"),
        (dict(step='resnet', regime='S'), "no regime 'S': use one of 'T', 'B'"),
        (dict(step='resnet', width=0), 'positive whole numbers'),
        (dict(step='resnet', depths=(1, 1, 1)), 'needs 4 positive whole numbers as depths'),
        (dict(step='resnet', out_indices=(0, 4)), 'stages 0 to 3'),
        (dict(step='resnet', frozen_stages=5), 'ConvNeXtRoadmap cannot freeze frozen_stages=5.*use -1 to 4'),
        (dict(step='resnet', drop_path_rate=1.0), 'ConvNeXtRoadmap needs 0 <= drop_path_rate < 1'),
    ],
)
def test_bad_arguments(options, sentence):
    with pytest.raises(UserError, match=sentence):
        ConvNeXtRoadmap(**options)


def test_small_image_and_other_initialisation():
    with pytest.raises(UserError, match='ConvNeXtRoadmap got an image of 31x64, it needs at least 32x32'):
        ConvNeXtRoadmap('resnet', **MICRO)(torch.randn(1, 3, 31, 64))
    with pytest.raises(UserError, match="of the type 'Pretrained', found 'Kaiming'"):
        ConvNeXtRoadmap('resnet', init_cfg=dict(type='Kaiming'), **MICRO).init_weights()
