"""Weights for tests: layouts of published files, values for them, a small model around a ConvNeXt, and its runner."""

import io
import random
import re
from collections import OrderedDict
from pathlib import Path

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader

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


def plain_norm(x: torch.Tensor) -> torch.Tensor:
    """What a new output norm does."""
    return F.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2], eps=1e-6).permute(0, 3, 1, 2)


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


def isotropic_layout(depth, width, layer_scale=True, output_norm=False):
    """{name: shape} of an official isotropic file, or of a ConvNeXtIsotropic of ours with its output norm."""
    names = {'stem.weight': (width, 3, 16, 16), 'stem.bias': (width,)}
    for i in range(depth):
        block = f'blocks.{i}'
        names.update({f'{block}.gamma': (width,)} if layer_scale else {})
        names.update({f'{block}.dwconv.weight': (width, 1, 7, 7), f'{block}.dwconv.bias': (width,)})
        names.update({f'{block}.norm.weight': (width,), f'{block}.norm.bias': (width,)})
        names.update({f'{block}.pwconv1.weight': (4 * width, width), f'{block}.pwconv1.bias': (4 * width,)})
        names.update({f'{block}.pwconv2.weight': (width, 4 * width), f'{block}.pwconv2.bias': (width,)})
    if output_norm:
        return {**names, 'norm0.weight': (width,), 'norm0.bias': (width,)}
    head = {'norm.weight': (width,), 'norm.bias': (width,), 'head.weight': (1000, width), 'head.bias': (1000,)}
    return {**names, **head}


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
    options.setdefault('custom_hooks', [dict(type='ConvNeXtLoadHook')])
    backbone = options.pop('backbone', dict(type='ConvNeXt', arch=MICRO))
    model = options.pop('model', dict(type='ToyDetector', backbone=backbone))
    return Runner(
        model=model,
        work_dir=str(tmp_path / 'work'),
        train_dataloader=DataLoader([dict(inputs=torch.zeros(3, 32, 32))]),
        train_cfg=dict(by_epoch=False, max_iters=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.0)),
        default_scope='mmengine',
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=1)),
        experiment_name=f'toy{random.random()}',
        **options,
    )


class Hostile:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, 'code of the file ran')


def imagenet(v2=False):
    return {'model': fill(official_layout(MICRO, v2))}


def zip_bytes(content, **options):
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


def load_unsafely_in_the_end(filename, map_location=None):
    """What onedl-mmengine 0.10.12 does with a local file."""
    try:
        return torch.load(filename, map_location=map_location, weights_only=True)
    except Exception:
        return torch.load(filename, map_location=map_location, weights_only=False)
