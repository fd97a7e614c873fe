"""Random weights with which a detector or segmentor finds something: what an export is proved with."""

from __future__ import annotations

import torch
from torch import nn

from convnext_dense.export import whole_model
from convnext_dense.export.proof import example_images

CLASSIFIERS = ('rpn_cls', 'fc_cls', 'retina_cls', 'conv_cls', 'atss_cls', 'gfl_cls', 'conv_seg')

REGRESSORS = tuple(f'{name}.weight' for name in ('rpn_reg', 'fc_reg', 'retina_reg', 'atss_reg', 'conv_reg'))


def random_weights(model: nn.Module) -> nn.Module:
    """Give a model of mmdet or mmseg random weights that spread scores and boxes, and put it into ``eval()`` mode.

    The refinement of anchors and RoIs is small, as in a trained detector. Large random ones make proposals of a tenth
    of a pixel and move RoIs so wildly that rounding decides which of them are kept.

    Raises:
        UserError: No family of the export fits the model.
    """
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            fan_in = parameter[0].numel()
            gain = 0.1 if name.endswith(REGRESSORS) else 1.4
            parameter.data.normal_(0, gain / fan_in**0.5, generator=generator)
        else:
            parameter.data.add_(torch.empty_like(parameter).normal_(0, 0.1, generator=generator))
    for buffer in model.buffers():
        if buffer.ndim == 1 and buffer.is_floating_point() and len(buffer) > 1:
            buffer.add_(torch.empty_like(buffer).normal_(0, 0.1, generator=generator).abs())  # of batch norms
    model.eval()
    for _ in range(4 if hasattr(model, 'roi_head') else 1):  # a stage of a cascade sees what the one before found
        _spread_scores(model)
    return model


@torch.no_grad()
def _spread_scores(model: nn.Module) -> None:
    """Shift and scale every classifier so that its logits have mean -1 and deviation 2 for each class."""
    logits: dict[str, list[torch.Tensor]] = {}  # of every level
    hooks = [
        module.register_forward_hook(lambda _, __, output, name=name: logits.setdefault(name, []).append(output))
        for name, module in model.named_modules()
        if name.endswith(CLASSIFIERS)
    ]
    whole_model(model)(torch.from_numpy(example_images(1, 192, 256)))
    for hook in hooks:
        hook.remove()
    modules = dict(model.named_modules())
    for name, outputs in logits.items():
        values = torch.cat([output.transpose(0, 1).flatten(1) for output in outputs], dim=1)  # a row per class
        scale = 2 / values.std(1).clamp(min=1e-3)
        classifier = modules[name]
        classifier.weight.mul_(scale.reshape(-1, *[1] * (classifier.weight.ndim - 1)))
        classifier.bias.copy_((classifier.bias - values.mean(1)) * scale - 1)
