"""Weights of every dialect load exactly or raise, by every way of loading and in every wrapper."""

import random
import re
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from mmengine.model import BaseModel, BaseModule
from mmengine.registry import MODELS
from mmengine.runner import Runner, load_checkpoint
from torch import nn
from torch.utils.data import DataLoader

from convnext_dense import ARCHS, ConvNeXt, UserError
from convnext_dense.engine.load_hook import ConvNeXtLoadHook
from convnext_dense.weights.dialects import DIALECTS
from convnext_dense.weights.safe_reading import read_file

MICRO = dict(depths=[1, 1, 2, 1], channels=[8, 16, 24, 32])
V2 = dict(use_grn=True, layer_scale_init_value=0)
IMAGE = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(5))


def draw(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Random values for a tensor of any dialect, none near its initial value, at which no swap would show."""
    noise = torch.randn(shape, generator=generator)
    length = max(shape)
    if noise.numel() > length:
        # Fan-in: all but the output channels; flat kernels (k * k, I, O) and (k * k, C) have theirs last.
        fan_in = shape[0] * (shape[1] if len(shape) == 3 else 1) if name.endswith('.kernel') else noise[0].numel()
        return noise / fan_in**0.5
    if 'grn' in name:
        return 0.5 * noise
    if 'gamma' in name or 'scale' in name:
        return 0.5 + 0.1 * noise
    return 0.1 * noise if name.endswith('bias') else 1 + 0.2 * noise


def redraw(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    for name, param in model.named_parameters():
        param.data = draw(name, tuple(param.shape), generator)
    return model.eval()


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def assert_equal_outputs(outputs, expected, bound=1e-5):
    assert len(outputs) == len(expected) == 4
    for out, want in zip(outputs, expected):
        assert relative(out, want) <= bound


def plain_norm(x: torch.Tensor) -> torch.Tensor:
    """What a new output norm does."""
    return F.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2], eps=1e-6).permute(0, 3, 1, 2)


# ---- other libraries: their own models, weights and forward


def timm_peer(arch, v2):
    import timm

    model = redraw(timm.create_model(f'convnext{"v2" if v2 else ""}_{arch}'))
    return model, [plain_norm(x) for x in model.forward_intermediates(IMAGE, intermediates_only=True)]


def timm_features_peer(arch, v2):
    import timm

    model = redraw(timm.create_model(f'convnext{"v2" if v2 else ""}_{arch}', features_only=True))
    return model, [plain_norm(x) for x in model(IMAGE)]


def torchvision_peer(arch, v2):
    import torchvision

    model = redraw(torchvision.models.get_model(f'convnext_{arch}'))
    x, outputs = IMAGE, []
    for layer in model.features:
        x = layer(x)
        outputs.append(plain_norm(x))
    return model, outputs[1::2]


def transformers_peer(arch, v2):
    import transformers

    name = 'ConvNextV2' if v2 else 'ConvNext'
    config = getattr(transformers, f'{name}Config')(
        depths=list(ARCHS[arch]['depths']), hidden_sizes=list(ARCHS[arch]['channels'])
    )
    model = redraw(getattr(transformers, f'{name}ForImageClassification')(config))
    return model, [plain_norm(x) for x in model(IMAGE, output_hidden_states=True).hidden_states[1:]]


def transformers_backbone_peer(arch, v2):
    import transformers

    config = transformers.ConvNextConfig(
        depths=list(ARCHS[arch]['depths']),
        hidden_sizes=list(ARCHS[arch]['channels']),
        out_features=['stage1', 'stage2', 'stage3', 'stage4'],
    )
    model = redraw(transformers.ConvNextBackbone(config))
    return model, model(IMAGE).feature_maps


def dinov3_peer(arch, v2):
    import transformers

    config = transformers.DINOv3ConvNextConfig(
        depths=list(ARCHS[arch]['depths']), hidden_sizes=list(ARCHS[arch]['channels'])
    )
    model = redraw(transformers.DINOv3ConvNextModel(config))
    return model, [plain_norm(x) for x in model(IMAGE, output_hidden_states=True).hidden_states[1:]]


@pytest.mark.parametrize(
    'peer, archs, archs_v2, dialect',
    [
        (timm_peer, ('tiny', 'small', 'base'), ('atto', 'tiny'), 'timm'),
        (timm_features_peer, ('tiny',), ('atto',), 'timm features'),
        (torchvision_peer, ('tiny', 'small', 'base'), (), 'torchvision'),
        (transformers_peer, ('tiny', 'small', 'base'), ('atto', 'tiny'), 'hf'),
        (transformers_backbone_peer, ('tiny',), (), 'hf'),
        (dinov3_peer, ('tiny', 'small', 'base'), (), 'hf dinov3'),
    ],
)
@torch.no_grad()
def test_other_libraries(peer, archs, archs_v2, dialect, logged):
    for arch, v2 in [*((arch, False) for arch in archs), *((arch, True) for arch in archs_v2)]:
        theirs, expected = peer(arch, v2)
        ours = ConvNeXt(arch, **(V2 if v2 else {})).eval()
        ours.load_state_dict(theirs.state_dict())
        assert_equal_outputs(ours(IMAGE), expected)
        count = sum(1 for _ in ours.parameters())
        assert f'ConvNeXt {arch}: ' in logged[-1] and f' {dialect} file' in logged[-1]
        has_norms = peer is transformers_backbone_peer
        count -= 0 if has_norms else 8
        assert f'{count} of {count} tensors' in logged[-1] and ('start new' in logged[-1]) == (not has_norms)


# ---- published layouts without a library to import: names and forward are written down here


def official_layout(arch, v2, output_norms=False):
    """{name: shape} of an official file of ImageNet weights, or of a detector's backbone."""
    depths, channels = arch['depths'], arch['channels']
    names = {
        'downsample_layers.0.0.weight': (channels[0], 3, 4, 4),
        'downsample_layers.0.0.bias': channels[:1],
        'downsample_layers.0.1.weight': channels[:1],
        'downsample_layers.0.1.bias': channels[:1],
    }
    for i, (depth, width) in enumerate(zip(depths, channels)):
        if i:
            names.update(
                {
                    f'downsample_layers.{i}.0.weight': channels[i - 1 : i],
                    f'downsample_layers.{i}.0.bias': channels[i - 1 : i],
                    f'downsample_layers.{i}.1.weight': (width, channels[i - 1], 2, 2),
                    f'downsample_layers.{i}.1.bias': (width,),
                }
            )
        for j in range(depth):
            block = f'stages.{i}.{j}'
            names.update({} if v2 else {f'{block}.gamma': (width,)})
            names.update(
                {
                    f'{block}.dwconv.weight': (width, 1, 7, 7),
                    f'{block}.dwconv.bias': (width,),
                    f'{block}.norm.weight': (width,),
                    f'{block}.norm.bias': (width,),
                    f'{block}.pwconv1.weight': (4 * width, width),
                    f'{block}.pwconv1.bias': (4 * width,),
                }
            )
            names.update(
                {f'{block}.grn.gamma': (1, 1, 1, 4 * width), f'{block}.grn.beta': (1, 1, 1, 4 * width)} if v2 else {}
            )
            names.update({f'{block}.pwconv2.weight': (width, 4 * width), f'{block}.pwconv2.bias': (width,)})
        if output_norms:
            names.update({f'norm{i}.weight': (width,), f'norm{i}.bias': (width,)})
    if not output_norms:
        names.update(
            {
                'norm.weight': channels[-1:],
                'norm.bias': channels[-1:],
                'head.weight': (1000, channels[-1]),
                'head.bias': (1000,),
            }
        )
    return {name: tuple(shape) for name, shape in names.items()}


def mmpretrain_layout(arch, v2, linear=True):
    """{name: shape} of the backbone of an mmpretrain 1.x or mmcls 0.x file."""
    names = {}
    for name, shape in official_layout(arch, v2, output_norms=True).items():
        name = re.sub(r'\.dwconv\.', '.depthwise_conv.', name)
        pointwise = re.search(r'\.pwconv\d\.weight', name)
        name = re.sub(r'\.pwconv(\d)\.', r'.pointwise_conv\1.', name)
        names[f'backbone.{name}'] = (
            (*shape, 1, 1) if pointwise and not linear else shape[-1:] if '.grn.' in name else shape
        )
    return {**names, 'head.fc.weight': (1000, arch['channels'][-1]), 'head.fc.bias': (1000,)}


def fcmae_layout(arch, v2):
    """{name: shape} of a masked pre-training file: MinkowskiEngine's modules, decoder, mask token."""
    names = {}
    for name, shape in official_layout(arch, v2).items():
        if name.startswith(('norm.', 'head.')):
            continue
        if not name.startswith('downsample_layers.0.'):
            if re.search(r'\.dwconv\.weight', name):
                name, shape = name.replace('weight', 'kernel'), (shape[2] * shape[3], shape[0])
            elif re.search(r'downsample_layers\.\d\.1\.weight', name):
                name, shape = name.replace('weight', 'kernel'), (shape[2] * shape[3], shape[1], shape[0])
            elif re.search(r'\.dwconv\.bias|downsample_layers\.\d\.1\.bias', name):
                shape = (1, *shape)
            elif '.grn.' in name:
                shape = (1, shape[-1])
            name = re.sub(r'(\.norm|downsample_layers\.\d\.0)\.(weight|bias)', r'\1.ln.\2', name)
            name = re.sub(r'(pwconv\d)\.', r'\1.linear.', name)
        names[f'encoder.{name}'] = shape
    return {
        **names,
        'mask_token': (1, 512, 1, 1),
        'proj.weight': (512, arch['channels'][-1], 1, 1),
        'proj.bias': (512,),
        'decoder.0.dwconv.weight': (512, 1, 7, 7),
        'decoder.0.grn.gamma': (1, 1, 1, 2048),
        'pred.weight': (3072, 512, 1, 1),
        'pred.bias': (3072,),
    }


def fill(layout, seed=11):
    generator = torch.Generator().manual_seed(seed)
    return OrderedDict((name, draw(name, shape, generator)) for name, shape in layout.items())


def sparse_convolution(x, kernel, stride, depthwise):
    """MinkowskiEngine on a full grid: one matrix (or vector) an offset, the row offset runs fastest."""
    side = round(len(kernel) ** 0.5)
    if stride == 1:
        x = F.pad(x, [side // 2] * 4)
    height, width = (x.shape[2] - side) // stride + 1, (x.shape[3] - side) // stride + 1
    out = 0
    for k, weight in enumerate(kernel):
        row, column = k % side, k // side
        part = x[
            :, :, row : row + (height - 1) * stride + 1 : stride, column : column + (width - 1) * stride + 1 : stride
        ]
        out = out + (part * weight.view(1, -1, 1, 1) if depthwise else torch.einsum('nihw,io->nohw', part, weight))
    return out


def official_forward(w, depths, output_norms=False):
    """Features of every stage, from weights under official names (fcmae's below its own ``encoder.``)."""
    sparse = any(name.endswith('.kernel') for name in w)
    if sparse:
        w = {name.removeprefix('encoder.'): value for name, value in w.items()}

    def get(name):  # (weight, bias)
        extra = next((e for e in ('', '.ln', '.linear') if f'{name}{e}.weight' in w), None)
        return (w[f'{name}.kernel'] if extra is None else w[f'{name}{extra}.weight']), w[
            f'{name}{extra or ""}.bias'
        ].reshape(-1)

    def norm(name, x):
        weight, bias = get(name)
        mean, var = x.mean(1, keepdim=True), x.var(1, unbiased=False, keepdim=True)
        return (x - mean) / (var + 1e-6).sqrt() * weight.view(1, -1, 1, 1) + bias.view(1, -1, 1, 1)

    def convolution(name, x, stride, depthwise):
        weight, bias = get(name)
        if weight.ndim < 4:
            return sparse_convolution(x, weight, stride, depthwise) + bias.view(1, -1, 1, 1)
        return F.conv2d(x, weight, bias, stride, padding=3 if depthwise else 0, groups=x.shape[1] if depthwise else 1)

    def pointwise(name, x):
        weight, bias = get(name)
        return F.conv2d(x, weight[:, :, None, None], bias)

    x, outputs = IMAGE, []
    for i, depth in enumerate(depths):
        if i == 0:
            x = norm('downsample_layers.0.1', convolution('downsample_layers.0.0', x, 4, False))
        else:
            x = convolution(f'downsample_layers.{i}.1', norm(f'downsample_layers.{i}.0', x), 2, False)
        for j in range(depth):
            block = f'stages.{i}.{j}'
            y = F.gelu(pointwise(f'{block}.pwconv1', norm(f'{block}.norm', convolution(f'{block}.dwconv', x, 1, True))))
            if f'{block}.grn.gamma' in w:
                energy = y.pow(2).sum((2, 3), keepdim=True).sqrt()
                gamma, beta = (w[f'{block}.grn.{part}'].reshape(1, -1, 1, 1) for part in ('gamma', 'beta'))
                y = gamma * y * energy / (energy.mean(1, keepdim=True) + 1e-6) + beta + y
            y = pointwise(f'{block}.pwconv2', y)
            x = x + (y * w[f'{block}.gamma'].view(1, -1, 1, 1) if f'{block}.gamma' in w else y)
        outputs.append(norm(f'norm{i}', x) if output_norms else plain_norm(x))
    return outputs


@pytest.mark.parametrize(
    'layout, archs, archs_v2',
    [
        ('official', ('tiny', 'small', 'base'), ('atto', 'tiny')),
        ('official detector', ('tiny',), ('atto',)),
        ('fcmae', (), ('atto', 'tiny')),
        ('mmpretrain', ('tiny', 'small', 'base'), ('atto', 'tiny')),
        ('mmcls with convolutions', ('tiny',), ()),
    ],
)
@torch.no_grad()
def test_published_layouts(layout, archs, archs_v2):
    for name, v2 in [*((arch, False) for arch in archs), *((arch, True) for arch in archs_v2)]:
        arch = ARCHS[name]
        output_norms = layout not in ('official', 'fcmae')
        if layout.startswith('mm'):
            file = fill(mmpretrain_layout(arch, v2, linear='convolutions' not in layout))
            plain = {
                re.sub(r'pointwise_conv(\d)', r'pwconv\1', key.removeprefix('backbone.')).replace(
                    'depthwise_conv', 'dwconv'
                ): value.flatten(1) if value.shape[2:] == (1, 1) else value
                for key, value in file.items()
            }
        else:
            plain = file = fill(
                fcmae_layout(arch, v2) if layout == 'fcmae' else official_layout(arch, v2, output_norms)
            )
        ours = ConvNeXt(name, **(V2 if v2 else {})).eval()
        ours.load_state_dict({'model' if layout in ('official', 'fcmae') else 'state_dict': file})
        assert_equal_outputs(ours(IMAGE), official_forward(plain, arch['depths'], output_norms))


# ---- every way in, in every wrapper


@MODELS.register_module()
class ToyDetector(BaseModel):
    """A backbone and a head, as a runner sees them."""

    def __init__(self, backbone: dict, init_cfg: dict | None = None) -> None:
        super().__init__(init_cfg=init_cfg)
        self.backbone = MODELS.build(backbone)
        self.head = nn.Conv2d(32, 2, 1)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        loss = self.head(self.backbone(inputs)[-1]).mean()
        return dict(loss=loss) if mode == 'loss' else [loss]


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


def toy(seed=1, prefix='backbone.', output_norms=True):
    """The weights of a ToyDetector around a micro ConvNeXt in the official layout."""
    state = OrderedDict(
        (prefix + name, value) for name, value in fill(official_layout(MICRO, False, output_norms), seed).items()
    )
    generator = torch.Generator().manual_seed(seed + 1)
    state.update({'head.weight': torch.randn(2, 32, 1, 1, generator=generator), 'head.bias': torch.ones(2)})
    return state


def assert_backbone(model, state, prefix='backbone.'):
    backbone = getattr(model, 'backbone', model)
    checked = [
        name
        for name, param in backbone.named_parameters()
        if prefix + name in state and torch.equal(param, state[prefix + name])
    ]
    new = {name for name, _ in backbone.named_parameters() if re.match(r'norm\d', name) and prefix + name not in state}
    assert len(checked) + len(new) == sum(1 for _ in backbone.parameters())
    assert not [name for name in new if name.endswith('weight') and not (backbone.get_parameter(name) == 1).all()]


def runner_of(tmp_path, **options) -> Runner:
    return Runner(
        model=dict(type='ToyDetector', backbone=dict(type='ConvNeXt', arch=MICRO)),
        work_dir=str(tmp_path / 'work'),
        train_dataloader=DataLoader([dict(inputs=torch.zeros(3, 32, 32))]),
        train_cfg=dict(by_epoch=False, max_iters=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.0)),
        default_scope='mmengine',
        custom_hooks=[dict(type='ConvNeXtLoadHook')],
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=1)),
        experiment_name=f'toy{random.random()}',
        **options,
    )


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
            runner.register_hook(ConvNeXtLoadHook(whole_model=True))
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
    runner.register_hook(ConvNeXtLoadHook(whole_model=True))
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
    with pytest.raises(UserError, match='no state of a training to resume: give it as load_from'):
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


@pytest.mark.parametrize(
    'first, second', [('model', 'model_ema'), ('teacher', 'student'), ('state_dict', 'state_dict_ema')]
)
def test_which_copy_is_taken(first, second, tmp_path, logged):
    one, other = toy(1), toy(7)
    torch.save({second: other, first: one}, tmp_path / 'both.pth')
    for prefix, state in ((None, one), (second, other), (f'{second}.backbone.', other), (first, one)):
        model = ConvNeXt(MICRO, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'both.pth'), prefix=prefix))
        model.init_weights()
        assert_backbone(model, state)
        rest = second if state is one else first
        assert f"(prefix '{first if state is one else second}.backbone.')" in logged[-1]
        assert f"not taken: the copy at '{rest}.backbone.'" in logged[-1]
    runner = runner_of(tmp_path, load_from=str(tmp_path / 'both.pth'))
    runner.load_or_resume()
    assert_backbone(runner.model, one)


@pytest.mark.parametrize(
    'dialect, prefix, siblings',
    [
        (
            'official',
            'model.backbone.bottom_up.',
            ('model.backbone.fpn_lateral2.weight', 'model.roi_heads.box_head.bias'),
        ),
        ('timm', 'visual.trunk.', ('visual.head.proj.weight', 'logit_scale', 'transformer.resblocks.0.ln_1.weight')),
        ('hf', 'backbone.', ('decode_head.classifier.weight',)),
    ],
)
def test_backbones_of_other_toolkits(dialect, prefix, siblings, logged):
    """detectron2, CLIP and transformers' UperNet: what stands beside the backbone is none of its parts."""
    source = redraw(ConvNeXt(MICRO))
    written, _ = next(d for d in DIALECTS if d.name == dialect).write(source.state_dict())
    model = ConvNeXt(MICRO)
    model.load_state_dict(
        {**{prefix + name: value for name, value in written.items()}, **{name: torch.ones(3) for name in siblings}}
    )
    for name, param in model.named_parameters():
        if not name.startswith('norm') or dialect != 'timm':
            assert torch.equal(param, source.get_parameter(name)), name
    assert f'(prefix {prefix!r})' in logged[-1]


def test_equal_copies_need_a_prefix():
    both = {'left': toy(1), 'right': toy(2)}
    with pytest.raises(UserError, match="several ConvNeXts, at the prefixes 'left.backbone.', 'right.backbone.': "):
        ConvNeXt(MICRO).load_state_dict(both)


# ---- what is said


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


@pytest.mark.parametrize('state', [{}, {'head.weight': torch.ones(2)}, {'state_dict': {}}, {'model': 3}])
def test_a_load_without_a_backbone_raises(state, tmp_path):
    model = MODELS.build(dict(type='ToyDetector', backbone=dict(type='ConvNeXt', arch=MICRO)))
    with pytest.raises(UserError, match="offers the ConvNeXt at 'backbone.' none of its tensors"):
        model.load_state_dict(state, strict=False)
    torch.save(state, tmp_path / 'file.pth')
    with pytest.raises(UserError, match='none of its tensors|holds no ConvNeXt'):
        runner_of(tmp_path, load_from=str(tmp_path / 'file.pth')).load_or_resume()


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
            [d for d in DIALECTS if d.name != 'fcmae' and not (v2 and d.name in ('torchvision', 'hf dinov3'))]
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
