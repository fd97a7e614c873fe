"""Random weights with which a detector or segmentor finds something: what an export is proved with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from convnext_dense.export import whole_model
from convnext_dense.export.proof import example_images

CLASSIFIERS = ('rpn_cls', 'fc_cls', 'retina_cls', 'conv_cls', 'atss_cls', 'gfl_cls', 'conv_seg')


def random_weights(model: nn.Module, size: tuple[int, int] = (192, 256)) -> nn.Module:
    """Initialise a model of mmdet or mmseg so that it finds something, and put it into ``eval()`` mode.

    Weights are initialised as for a training, vectors get noise too, and classifiers are scaled to spread scores. So
    the blocks of a residual network start small, as do the refinements of anchors and RoIs. Larger random weights
    multiply rounding until it decides which proposals are kept and which label a pixel has.

    Args:
        model: Of mmdet or mmseg, as it was built.
        size: Height and width of the image that its scores are spread for.

    Raises:
        UserError: No family of the export fits the model.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model.init_weights()
    for parameter in model.parameters():
        if parameter.ndim < 2:
            parameter.data.add_(torch.empty_like(parameter).normal_(0, 0.1, generator=generator))
    for buffer in model.buffers():
        if buffer.ndim == 1 and buffer.is_floating_point() and len(buffer) > 1:
            buffer.add_(torch.empty_like(buffer).normal_(0, 0.1, generator=generator).abs())  # of batch norms
    model.eval()
    passes = 1 + getattr(model.roi_head, 'num_stages', 1) if hasattr(model, 'roi_head') else 1
    for _ in range(passes):  # RoI heads see what the RPN found, and a stage of a cascade what the one before found
        _spread_scores(model, size)
    return model


@torch.no_grad()
def _spread_scores(model: nn.Module, size: tuple[int, int]) -> None:
    """Shift and scale every classifier so that its logits have mean -1 and deviation 2 for each class.

    Batch norms get the statistics of what they receive, as in training. Without them the features of a deep network
    grow with every block, and boxes collapse at the borders of the image.
    """
    logits: dict[str, list[torch.Tensor]] = {}  # of every level
    hooks = [
        module.register_forward_hook(lambda _, __, output, name=name: logits.setdefault(name, []).append(output))
        for name, module in model.named_modules()
        if name.endswith(CLASSIFIERS)
    ]
    hooks += [
        module.register_forward_pre_hook(_statistics_hook(module))
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    ]
    whole_model(model)(torch.from_numpy(example_images(1, *size)))
    for hook in hooks:
        hook.remove()
    modules = dict(model.named_modules())
    for name, outputs in logits.items():
        values = torch.cat([output.transpose(0, 1).flatten(1) for output in outputs], dim=1)  # a row per class
        scale = 2 / values.std(1).clamp(min=1e-3)
        classifier = modules[name]
        classifier.weight.mul_(scale.reshape(-1, *[1] * (classifier.weight.ndim - 1)))
        classifier.bias.copy_((classifier.bias - values.mean(1)) * scale - 1)


def _statistics_hook(norm: Any) -> Callable[[Any, tuple[torch.Tensor]], None]:
    """Return a hook that sets mean and variance of ``norm``, and of the copy of it that a family may run."""

    def set_statistics(running: Any, inputs: tuple[torch.Tensor]) -> None:
        (x,) = inputs
        dims = [0, *range(2, x.dim())]
        if x.numel() == x.shape[1]:
            return  # one value per channel has no variance
        for module in (running, norm):
            module.running_mean.copy_(x.mean(dims))
            module.running_var.copy_(x.var(dims, correction=0).clamp(min=1e-3))

    return set_statistics
