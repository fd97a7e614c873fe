"""Whole CLIP models with a ConvNeXt as image tower, as open_clip 3.3.0 names their tensors."""

import re

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.convnext import ConvNeXt as TimmConvNeXt
from torch import nn
from weights_helpers import IMAGE, MICRO, plain_norm, redraw, relative

from convnext_dense import ConvNeXt
from convnext_dense.archs import resolve_arch
from convnext_dense.convert import convert
from convnext_dense.weights.known import CLIP

# The projection behind the image tower, of open_clip's convnext_base_w and xxlarge, and of convnext_large_d.
HEADS = {
    'linear': ('visual.head.proj.weight',),
    'mlp': ('visual.head.mlp.fc1.weight', 'visual.head.mlp.fc1.bias', 'visual.head.mlp.fc2.weight'),
}
TEXT = (
    'positional_embedding', 'text_projection', 'logit_scale', 'token_embedding.weight',
    'ln_final.weight', 'ln_final.bias',
    *(
        f'transformer.resblocks.{block}.{name}'
        for block in (0, 1)
        for name in (
            'ln_1.weight', 'ln_1.bias', 'attn.in_proj_weight', 'attn.in_proj_bias', 'attn.out_proj.weight',
            'attn.out_proj.bias', 'ln_2.weight', 'ln_2.bias', 'mlp.c_fc.weight', 'mlp.c_fc.bias',
            'mlp.c_proj.weight', 'mlp.c_proj.bias',
        )
    ),
)  # fmt: skip


def image_tower() -> nn.Module:
    """timm's model as open_clip makes it: a classifier is taken away, the norm in front of it stays."""
    tower = redraw(TimmConvNeXt(depths=tuple(MICRO['depths']), dims=tuple(MICRO['channels'])))
    tower.reset_classifier(0)
    return tower


def whole_model(head: str) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """The image tower, and the tensors of the model around it."""
    tower = image_tower()
    state = {f'visual.trunk.{name}': value for name, value in tower.state_dict().items()}
    assert {'visual.trunk.stem.0.weight', 'visual.trunk.head.norm.weight'} <= state.keys()
    for name in (*HEADS[head], *TEXT):
        state[name] = torch.ones(()) if name == 'logit_scale' else torch.ones(4, 4)
    return tower, state


def check_outputs(model: nn.Module, tower: nn.Module) -> None:
    features = tower.forward_intermediates(IMAGE, intermediates_only=True)
    for out, feature in zip(model.eval()(IMAGE), features, strict=True):
        assert relative(out, plain_norm(feature)) <= 1e-5


@pytest.mark.parametrize('head', HEADS)
@pytest.mark.parametrize('file', ['open_clip_pytorch_model.bin', 'open_clip_model.safetensors'])
def test_repository_of_open_clip(file, head, tmp_path, monkeypatch, logged):
    """From a mirror of the hub; statistics and licence by the name of the repository."""
    repository = tmp_path / 'laion/CLIP-convnext_base_w-laion2B-s13B-b82K'
    repository.mkdir(parents=True)
    tower, state = whole_model(head)
    save = save_file if file.endswith('.safetensors') else torch.save
    save(state, repository / file)
    monkeypatch.setenv('CONVNEXT_DENSE_WEIGHTS', str(tmp_path))
    model = ConvNeXt(MICRO, pretrained='hf-hub:laion/CLIP-convnext_base_w-laion2B-s13B-b82K')
    model.init_weights()
    check_outputs(model, tower)
    assert model.weights_statistics == CLIP
    (line,) = logged
    assert "tensors from a timm file (prefix 'visual.trunk.')" in line
    assert line.endswith('input statistics of these weights: CLIP; licence of these weights: MIT')


def test_download_asks_for_every_name(tmp_path, monkeypatch):
    huggingface_hub = pytest.importorskip('huggingface_hub')
    tower, state = whole_model('linear')
    torch.save(state, tmp_path / 'open_clip_pytorch_model.bin')
    asked = []

    def download(repository, name):
        asked.append(name)
        if not (tmp_path / name).exists():
            raise huggingface_hub.errors.EntryNotFoundError(f'no {name}')
        return str(tmp_path / name)

    monkeypatch.setattr(huggingface_hub, 'hf_hub_download', download)
    model = ConvNeXt(MICRO, pretrained='hf-hub:someone/a-clip')
    model.init_weights()
    check_outputs(model, tower)
    assert asked == [
        'model.safetensors',
        'pytorch_model.bin',
        'open_clip_model.safetensors',
        'open_clip_pytorch_model.bin',
    ]


def test_convert(tmp_path):
    tower, state = whole_model('mlp')
    torch.save(state, tmp_path / 'clip.bin')
    convert(str(tmp_path / 'clip.bin'), tmp_path / 'ours.safetensors', 'ours')
    model = ConvNeXt(MICRO, pretrained=str(tmp_path / 'ours.safetensors'))
    model.init_weights()
    check_outputs(model, tower)


@pytest.mark.parametrize(
    'name, arch', [('convnext_base', 'base'), ('convnext_large', 'large'), ('convnext_xxlarge', 'xxlarge')]
)
def test_towers_of_open_clip_are_archs(name, arch):
    """What open_clip's convnext_base_w, _large_d, _large_d_320 and _xxlarge name as their image towers."""
    with torch.device('meta'):
        tower = timm.create_model(name)
    depths, channels = resolve_arch(arch)
    assert tuple(len(stage.blocks) for stage in tower.stages) == depths
    assert tuple(stage.blocks[0].mlp.fc2.out_features for stage in tower.stages) == channels
    assert not re.search('conv', type(tower.stages[0].blocks[0].mlp.fc1).__name__, re.I)
