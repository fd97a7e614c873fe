"""Mixed precision in bfloat16 on CPUs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from mmengine.optim import OptimWrapper
from torch import Tensor, nn

from convnext_dense.errors import UserError


class CPUAmpOptimWrapper(OptimWrapper):
    """mmengine's ``AmpOptimWrapper`` for CPUs, which that one refuses: the forward pass under autocast to bfloat16.

    bfloat16 has the range of fp32, so nothing scales the loss; checkpoints go to and from ``AmpOptimWrapper`` and
    ``OptimWrapper``. Its 8 bits are too few for coordinates, and operators of mmcv (RoIAlign, NMS, deformable
    convolution) know no half type on CPUs: modules of ``mmcv.ops`` run in fp32, and heads give fp32.

    Args:
        dtype: None or bfloat16, the only half type that CPUs are fast in.
        loss_scale: Of ``AmpOptimWrapper``; not used.

    Raises:
        UserError: Another dtype.
    """

    def __init__(self, dtype: str | torch.dtype | None = None, loss_scale: Any = None, **kwargs: Any) -> None:
        if dtype not in (None, 'bfloat16', torch.bfloat16):
            raise UserError(
                f'CPUAmpOptimWrapper has dtype={dtype!r}: mixed precision on a CPU runs in bfloat16 only, '
                "give dtype='bfloat16' or leave it out"
            )
        super().__init__(**kwargs)

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        with super().optim_context(model), fp32_where_needed(model), torch.autocast('cpu', torch.bfloat16):
            yield

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict({key: value for key, value in state_dict.items() if key != 'loss_scaler'})


@contextmanager
def fp32_where_needed(model: nn.Module) -> Iterator[None]:
    """Meanwhile, modules of ``mmcv.ops`` run in fp32, and heads, which may compute in a half type, give fp32.

    Dense heads make their anchors in the type of their outputs, and losses follow it too.
    """
    running: list[torch.autocast] = []

    def enter(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        running.append(torch.autocast('cpu', enabled=False))
        running[-1].__enter__()
        return _to_fp32(args), _to_fp32(kwargs)

    def leave(module: nn.Module, args: tuple, output: Any) -> None:
        running.pop().__exit__(None, None, None)

    def give_fp32(module: nn.Module, args: tuple, output: Any) -> Any:
        return _to_fp32(output)

    with ExitStack() as hooks:
        for module in model.modules():
            # RoI extractors collect what RoIAlign gives in a tensor of the type that they got.
            if hasattr(module, 'roi_layers') or any(
                kind.__module__.startswith('mmcv.ops.') for kind in type(module).__mro__
            ):
                hooks.callback(module.register_forward_pre_hook(enter, with_kwargs=True).remove)
                hooks.callback(module.register_forward_hook(leave, always_call=True).remove)
            elif hasattr(module, 'loss_by_feat') or hasattr(module, 'loss_and_target'):
                # mmseg calls forward() of a head, which passes hooks by: its last layer is one that they reach.
                last = getattr(module, 'conv_seg', module)
                hooks.callback(last.register_forward_hook(give_fp32).remove)
        yield


def _to_fp32(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.float() if value.dtype in (torch.bfloat16, torch.float16) else value
    if isinstance(value, dict):
        return {key: _to_fp32(item) for key, item in value.items()}
    return type(value)(_to_fp32(item) for item in value) if type(value) in (list, tuple) else value
