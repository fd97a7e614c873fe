"""Files of every dialect give the features of the library that they come from."""

import re

import pytest
import torch
import torch.nn.functional as F
from weights_helpers import (
    IMAGE,
    V2,
    fcmae_layout,
    fill,
    mmpretrain_layout,
    official_layout,
    plain_norm,
    redraw,
    relative,
)

from convnext_dense import ARCHS, ConvNeXt


def assert_equal_outputs(outputs, expected, bound=1e-5):
    assert len(outputs) == len(expected) == 4
    for out, want in zip(outputs, expected):
        assert relative(out, want) <= bound


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
