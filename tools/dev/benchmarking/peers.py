"""Other implementations of ConvNeXt, with the weights and outputs of ours.

All of them get the same weights and give what a dense predictor needs: the features of four stages, each normalised.
mmpretrain and transformers have these output norms; timm and torchvision get them here.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convnext_dense import ConvNeXt
from convnext_dense.errors import UserError
from convnext_dense.weights.dialects import DIALECTS

EPS = 1e-6
Sizes = tuple[int, ...]  # of each stage
State = Mapping[str, Tensor]  # by the names of ours


def random_state(backbone: ConvNeXt, seed: int = 0) -> dict[str, Tensor]:
    """A state dict of ours with random values in every tensor: at a layer scale of 1e-6 no block would show."""
    generator = torch.Generator().manual_seed(seed)
    state = backbone.state_dict()
    for name, value in state.items():
        noise = torch.randn(value.shape, generator=generator)
        if value.ndim > 1:
            state[name] = noise / value[0].numel() ** 0.5
        else:
            state[name] = 0.1 * noise + (
                0.0 if name.endswith(('bias', 'beta')) else 0.5 if name.endswith('gamma') else 1.0
            )
    return state


class ChannelsFirstNorm(nn.Module):
    """LayerNorm over the channels of (N, C, H, W), by mean and square."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        x = centred / (centred.pow(2).mean(1, keepdim=True) + EPS).sqrt()
        return x * self.weight[:, None, None] + self.bias[:, None, None]


class OfficialGRN(nn.Module):
    """Global response normalisation over (N, H, W, C) (ConvNeXt V2, arXiv 2301.00808, Algorithm 1)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        response = torch.norm(x, p=2, dim=(1, 2), keepdim=True)
        normalised = response / (response.mean(-1, keepdim=True) + 1e-6)
        return self.gamma * (x * normalised) + self.beta + x


class OfficialBlock(nn.Module):
    def __init__(self, channels: int, drop_path: float, v2: bool) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=EPS)
        self.pwconv1 = nn.Linear(channels, 4 * channels)
        self.pwconv2 = nn.Linear(4 * channels, channels)
        self.grn = OfficialGRN(4 * channels) if v2 else nn.Identity()
        self.gamma = None if v2 else nn.Parameter(torch.ones(channels))
        self.drop_path = drop_path

    def forward(self, x: Tensor) -> Tensor:
        y = self.dwconv(x).permute(0, 2, 3, 1)  # (N, C, H, W) -> (N, H, W, C)
        y = self.pwconv2(self.grn(F.gelu(self.pwconv1(self.norm(y)))))
        if self.gamma is not None:
            y = self.gamma * y
        y = y.permute(0, 3, 1, 2)  # (N, H, W, C) -> (N, C, H, W)
        if self.training and self.drop_path:
            keep = 1 - self.drop_path
            y = y * torch.empty(len(y), 1, 1, 1, dtype=y.dtype, device=y.device).bernoulli_(keep) / keep
        return x + y


class Official(nn.Module):
    """The formulation of the paper's code, written from the paper: NCHW memory, norms by mean and square outside the
    blocks, Linear layers on permuted tensors inside (section 3, Figure 4)."""

    def __init__(self, depths: tuple[int, ...], channels: tuple[int, ...], drop_path: float, v2: bool = False) -> None:
        super().__init__()
        rates = iter(np.linspace(0, drop_path, sum(depths)).tolist())
        self.downsample_layers = nn.ModuleList(
            [
                nn.Sequential(nn.Conv2d(3, channels[0], 4, 4), ChannelsFirstNorm(channels[0])),
                *(nn.Sequential(ChannelsFirstNorm(a), nn.Conv2d(a, b, 2, 2)) for a, b in zip(channels, channels[1:])),
            ]
        )
        self.stages = nn.ModuleList(
            nn.Sequential(*(OfficialBlock(width, next(rates), v2) for _ in range(depth)))
            for depth, width in zip(depths, channels)
        )
        for i, width in enumerate(channels):
            self.add_module(f'norm{i}', ChannelsFirstNorm(width))

    def forward(self, x: Tensor) -> list[Tensor]:
        outputs = []
        for i, (downsample, stage) in enumerate(zip(self.downsample_layers, self.stages)):
            x = stage(downsample(x))
            outputs.append(getattr(self, f'norm{i}')(x))
        return outputs


class WithNorms(nn.Module):
    """A classifier's stage features with output norms."""

    def __init__(
        self, classifier: nn.Module, features: Callable[[nn.Module, Tensor], list[Tensor]], channels: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.classifier = classifier
        self.features = features
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=EPS) for width in channels)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [
            norm(feature.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # (N, C, H, W) -> (N, H, W, C) and back
            for norm, feature in zip(self.norms, self.features(self.classifier, x))
        ]


class FeatureMaps(nn.Module):
    """transformers' backbone returns an object around its features."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.backbone(x).feature_maps


def fill(model: nn.Module, state: Mapping[str, Tensor], dialect_name: str, norms: nn.ModuleList | None = None) -> None:
    """Put our weights into a model of another library, completely."""
    dialect = next(dialect for dialect in DIALECTS if dialect.name == dialect_name)
    written, unnamed = dialect.write(state)
    missing, surplus = model.load_state_dict(written, strict=False)
    missing = [name for name in missing if not dialect.is_other(name)]
    if norms is not None:
        norms.load_state_dict({name.removeprefix('norm'): state[name] for name in unnamed})
        unnamed = []
    if missing or surplus or unnamed:
        raise RuntimeError(f'the weights do not fit {dialect_name}: {(missing + surplus + unnamed)[:3]}')


def build_official(depths: Sizes, channels: Sizes, drop_path: float, state: State, v2: bool) -> nn.Module:
    model = Official(depths, channels, drop_path, v2)
    model.load_state_dict(state)
    return model


def build_mmpretrain(depths: Sizes, channels: Sizes, drop_path: float, state: State, v2: bool) -> nn.Module:
    import_mmpretrain()
    from mmpretrain.models import ConvNeXt as Theirs

    model = Theirs(
        dict(depths=list(depths), channels=list(channels)),
        out_indices=(0, 1, 2, 3),
        drop_path_rate=drop_path,
        layer_scale_init_value=0.0 if v2 else 1.0,
        use_grn=v2,
        gap_before_final_norm=False,
    )
    fill(model, state, 'mmpretrain')
    return model


def build_timm(depths: Sizes, channels: Sizes, drop_path: float, state: State, v2: bool) -> nn.Module:
    from timm.models.convnext import ConvNeXt as Theirs

    blocks = dict(use_grn=True, ls_init_value=None) if v2 else dict(ls_init_value=1.0)
    classifier = Theirs(depths=depths, dims=channels, drop_path_rate=drop_path, num_classes=0, **blocks)
    model = WithNorms(classifier, lambda body, x: body.forward_intermediates(x, intermediates_only=True), channels)
    fill(classifier, state, 'timm', model.norms)
    return model


def build_torchvision(depths: Sizes, channels: Sizes, drop_path: float, state: State, v2: bool) -> nn.Module:
    if v2:
        raise UserError('torchvision has no ConvNeXt V2')
    from torchvision.models.convnext import CNBlockConfig
    from torchvision.models.convnext import ConvNeXt as Theirs

    def features(body: nn.Module, x: Tensor) -> list[Tensor]:
        outputs = []
        for i, layer in enumerate(body.features):
            x = layer(x)
            if i % 2:
                outputs.append(x)
        return outputs

    settings = [CNBlockConfig(*setting) for setting in zip(channels, [*channels[1:], None], depths)]
    classifier = Theirs(settings, stochastic_depth_prob=drop_path, layer_scale=1.0)
    classifier.classifier = nn.Identity()
    model = WithNorms(classifier, features, channels)
    fill(classifier, state, 'torchvision', model.norms)
    return model


def build_transformers(depths: Sizes, channels: Sizes, drop_path: float, state: State, v2: bool) -> nn.Module:
    settings = dict(
        depths=list(depths),
        hidden_sizes=list(channels),
        drop_path_rate=drop_path,
        layer_norm_eps=EPS,
        out_features=['stage1', 'stage2', 'stage3', 'stage4'],
    )
    backbone: nn.Module
    if v2:
        from transformers import ConvNextV2Backbone, ConvNextV2Config

        backbone = ConvNextV2Backbone(ConvNextV2Config(**settings))
    else:
        from transformers import ConvNextBackbone, ConvNextConfig

        backbone = ConvNextBackbone(ConvNextConfig(layer_scale_init_value=1.0, **settings))
    fill(backbone, state, 'hf')
    return FeatureMaps(backbone)


# Name: how to build it, and the memory layouts that it is fast in (both where that depends on the machine).
PEERS: dict[str, tuple[Callable[..., nn.Module], tuple[str, ...]]] = {
    'official': (build_official, ('contiguous',)),
    'mmpretrain': (build_mmpretrain, ('contiguous',)),
    'timm': (build_timm, ('contiguous', 'channels_last')),
    'torchvision': (build_torchvision, ('contiguous', 'channels_last')),
    'transformers': (build_transformers, ('contiguous',)),
}
# The classes of residual blocks in all of them.
BLOCKS = ('Block', 'OfficialBlock', 'ConvNeXtBlock', 'CNBlock', 'ConvNextLayer')


def import_mmpretrain() -> None:
    """Import mmpretrain, which with transformers >= 5 fails in its multimodal models: they stay out, as they do where
    transformers is not installed."""
    if importlib.util.find_spec('mmpretrain') is None:
        raise ModuleNotFoundError("No module named 'mmpretrain'", name='mmpretrain')

    def without_transformers(metadata: Any) -> Callable:
        find = metadata.distribution

        def distribution(name: str) -> Any:
            if name == 'transformers':
                raise metadata.PackageNotFoundError(name)
            return find(name)

        return distribution

    with ExitStack() as stack:
        for name in ('importlib.metadata', 'importlib_metadata'):
            if importlib.util.find_spec(name):
                metadata = importlib.import_module(name)
                stack.enter_context(patch.object(metadata, 'distribution', without_transformers(metadata)))
        try:
            importlib.import_module('mmpretrain.models')
        except ImportError:
            raise
        except Exception as error:  # written for older libraries, it fails in many ways
            raise ImportError(f'import mmpretrain: {type(error).__name__}: {error}') from error


def onnxruntime_session(path: Path, shape: tuple[int, ...], threads: int, dtype: str) -> Callable[[Tensor], list]:
    """A function from an image to features, by ONNX Runtime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])
    return lambda image: _tensors(session.run(None, {'image': image.numpy()}))


def openvino_session(path: Path, shape: tuple[int, ...], threads: int, dtype: str) -> Callable[[Tensor], list]:
    """A function from an image to features, by OpenVINO on the CPU, compiled for this shape."""
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    model.reshape(list(shape))
    request = core.compile_model(
        model,
        'CPU',
        {
            'INFERENCE_NUM_THREADS': threads,
            'INFERENCE_PRECISION_HINT': {'fp32': 'f32', 'bf16': 'bf16'}[dtype],
            'PERFORMANCE_HINT': 'LATENCY',
            'NUM_STREAMS': 1,
        },
    ).create_infer_request()
    return lambda image: _tensors(request.infer([image.numpy()], share_inputs=True).values())


SESSIONS = {'onnxruntime': (onnxruntime_session, ('fp32',)), 'openvino': (openvino_session, ('fp32', 'bf16'))}


def _tensors(arrays: Any) -> list[Tensor]:
    return [torch.from_numpy(np.asarray(array)) for array in arrays]
