"""What this machine is, and the rates that it reaches."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

MIB = 2**20
DTYPES = {'fp32': torch.float32, 'bf16': torch.bfloat16, 'fp16': torch.float16}
PACKAGES = (
    'torch',
    'torchvision',
    'timm',
    'transformers',
    'mmpretrain',
    'onnxruntime',
    'openvino',
    'mmengine',
    'mmcv',
    'mmdet',
    'mmsegmentation',
    'convnext-dense',
)
INSTRUCTIONS = ('avx2', 'avx512f', 'avx512_bf16', 'amx_bf16')


def machine(device: torch.device) -> dict[str, Any]:
    """Describe processor, GPU, threads and versions."""
    cpuinfo = Path('/proc/cpuinfo').read_text() if Path('/proc/cpuinfo').exists() else ''
    name = re.search(r'model name\s*: (.*)', cpuinfo)
    flags = re.search(r'flags\s*: (.*)', cpuinfo)
    instructions = flags[1].split() if flags else []
    return dict(
        cpu=name[1] if name else platform.processor() or platform.machine(),
        cpus=os.cpu_count(),
        instructions=[instruction for instruction in INSTRUCTIONS if instruction in instructions],
        gpu=torch.cuda.get_device_name() if device.type == 'cuda' else None,
        threads=torch.get_num_threads(),
        load_before=round(os.getloadavg()[0], 2),
        versions=_versions(),
    )


def _versions() -> dict[str, str]:
    versions = {'python': platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def rates(device: torch.device, tokens: int = 4200, channels: int = 384) -> dict[str, float]:
    """Measure what this machine can do.

    Args:
        device: Where to measure.
        tokens, channels: Size of the first Linear of a block; default: in stage 3 of ConvNeXt-T.

    Returns:
        GFLOP/s, multiply and add counted separately, of that Linear, stock and by oneDNN, and of its weight gradient;
        GB/s of a copy, read and write counted.
    """
    found = {}
    gflop = 2 * tokens * channels * 4 * channels / 1e9
    for name in ('fp32', 'bf16') if device.type == 'cpu' else ('fp32', 'bf16', 'fp16'):
        dtype = DTYPES[name]
        inputs = torch.randn(tokens, channels).to(device, dtype)
        gradients = torch.randn(tokens, 4 * channels).to(device, dtype)
        weight = torch.randn(4 * channels, channels).to(device, dtype)
        bias = torch.randn(4 * channels).to(device, dtype)
        found[f'linear {name}'] = gflop / _fastest(F.linear, inputs, weight, bias)
        onednn_seconds = _onednn_linear_seconds(inputs, weight, bias)
        if onednn_seconds is not None:
            found[f'oneDNN linear {name}'] = gflop / onednn_seconds
        found[f'weight gradient {name}'] = gflop / _fastest(torch.mm, gradients.t(), inputs)
    source = torch.zeros(64 * MIB if device.type == 'cpu' else 1024 * MIB, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    found['copy GB/s'] = 2 * source.numel() / 1e9 / _fastest(target.copy_, source)
    return {name: round(value, 1) for name, value in found.items()}


def _onednn_linear_seconds(inputs: Tensor, weight: Tensor, bias: Tensor) -> float | None:
    """Return the seconds of oneDNN's Linear; None where there is no such kernel."""
    if inputs.device.type != 'cpu' or not hasattr(torch.ops.mkldnn, '_linear_pointwise'):
        return None
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, len(inputs))
        return _fastest(torch.ops.mkldnn._linear_pointwise, inputs, packed, bias, 'none', [], '')
    except RuntimeError:
        return None


@torch.no_grad()
def _fastest(function: Callable[..., Any], *args: Any, repeats: int = 10, warmup: int = 2) -> float:
    """Return the seconds of the fastest of several calls."""
    seconds = []
    for _ in range(warmup + repeats):
        synchronize()
        begin = time.perf_counter()
        function(*args)
        synchronize()
        seconds.append(time.perf_counter() - begin)
    return min(seconds[warmup:])


def synchronize() -> None:
    """Wait for the GPU, if one is used."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
