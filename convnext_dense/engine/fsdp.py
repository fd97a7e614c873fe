"""ConvNeXt models split over processes by PyTorch's FullyShardedDataParallel, through mmengine's FlexibleRunner."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from mmengine._strategy import FSDPStrategy
from mmengine.device import get_device
from mmengine.dist import is_main_process
from mmengine.optim import AmpOptimWrapper, BaseOptimWrapper, OptimWrapperDict
from torch import Tensor, nn
from torch.distributed import fsdp

from convnext_dense.durable import TEMPORARY, publish
from convnext_dense.errors import UserError
from convnext_dense.models.block import Block
from convnext_dense.weights.dialects import WRAPPED_MODULES


def wrap_blocks(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
    """``auto_wrap_policy``: every ConvNeXt block is a unit of its own, the rest of the model is one more."""
    return recurse or isinstance(module, Block)


class ConvNeXtFSDPStrategy(FSDPStrategy):
    """mmengine's FSDPStrategy for ConvNeXt.

    It wraps by block, clips by the norm of the whole gradient, writes ordinary checkpoints, resumes, and runs on CPUs.

    Args:
        model_wrapper: Options of mmengine's MMFullyShardedDataParallel, such as
            ``dict(sharding_strategy='SHARD_GRAD_OP')``.
        state_dict_cfg: As in FSDPStrategy; ``'full'`` writes one file that every other run can read.
    """

    def __init__(
        self, *, model_wrapper: dict | None = None, state_dict_cfg: str | dict = 'full', **kwargs: Any
    ) -> None:
        defaults: dict[str, Any] = dict(auto_wrap_policy=wrap_blocks)
        if get_device() == 'cpu':
            defaults['device_id'] = torch.device('cpu')  # mmengine names a GPU
            if state_dict_cfg == 'full':
                # Moving to the CPU what is there already leaves torch with freed memory.
                state_dict_cfg = dict(
                    state_dict_type=fsdp.StateDictType.FULL_STATE_DICT,
                    state_dict_config=fsdp.FullStateDictConfig(rank0_only=True),
                    optim_state_dict_config=fsdp.FullOptimStateDictConfig(rank0_only=True),
                )
        super().__init__(model_wrapper={**defaults, **(model_wrapper or {})}, state_dict_cfg=state_dict_cfg, **kwargs)

    def build_optim_wrapper(self, optim_wrapper: Any, model: nn.Module | None = None) -> BaseOptimWrapper:
        """Build it so that all processes clip by one norm and scale losses alike.

        mmengine clips by the norm of each process's own shards, which then shrink by different factors.

        Raises:
            UserError: ``clip_grad`` has an option that a sharded model does not take.
        """
        if isinstance(optim_wrapper, dict):
            optim_wrapper = with_sharded_scaler(optim_wrapper)
        built = super().build_optim_wrapper(optim_wrapper, model)
        for wrapper in built.values() if isinstance(built, OptimWrapperDict) else [built]:
            if getattr(wrapper, 'clip_func', None) is not nn.utils.clip_grad_norm_:
                continue
            unknown = sorted(set(wrapper.clip_grad_kwargs) - {'max_norm', 'norm_type'})
            if unknown:
                raise UserError(f'clip_grad of a sharded model takes max_norm and norm_type, not {", ".join(unknown)}')
            wrapper.clip_func = WholeNorm(model)
        return built

    def save_checkpoint(self, filename: str, **kwargs: Any) -> None:
        if self.state_dict_type != fsdp.StateDictType.FULL_STATE_DICT:  # a folder with a file per process
            super().save_checkpoint(filename, **kwargs)
            return
        temporary = filename + TEMPORARY
        super().save_checkpoint(temporary, **kwargs)
        if is_main_process():
            publish(Path(temporary), Path(filename))

    def load_optim_state_dict(self, state_dict: dict) -> None:
        # mmengine passes these in the order of an older torch.
        self.optim_wrapper.load_state_dict(
            fsdp.FullyShardedDataParallel.optim_state_dict_to_load(
                model=self.model, optim=self.optim_wrapper.optimizer, optim_state_dict=state_dict
            )
        )


class WholeNorm:
    """``clip_grad_norm_`` by the norm of the gradients of all processes."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, own_shards: list[Tensor], **kwargs: float) -> Tensor:
        return self.model.clip_grad_norm_(**kwargs)


def with_sharded_scaler(optim_wrapper: dict) -> dict:
    """Let an AmpOptimWrapper look for overflows in all processes, unless ``use_fsdp`` is given.

    Otherwise a process whose shards are finite steps while another one does not.
    """
    if optim_wrapper.get('type') not in ('AmpOptimWrapper', AmpOptimWrapper):
        return optim_wrapper
    return dict(use_fsdp=True) | optim_wrapper


def is_sharded(model: nn.Module) -> bool:
    """Whether a part of ``model`` is split over processes."""
    return any(isinstance(module, fsdp.FullyShardedDataParallel) for module in model.modules())


@contextmanager
def whole_parameters(model: nn.Module) -> Iterator[None]:
    """Inside, parameters have their own shapes and values, in every process; changes are lost."""
    if not is_sharded(model):
        yield
        return
    with fsdp.FullyShardedDataParallel.summon_full_params(model, writeback=False):
        yield


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """``model.state_dict()``; of a sharded model inside :func:`whole_parameters`, where torch has none."""
    if not is_sharded(model):
        return model.state_dict()
    return {
        WRAPPED_MODULES.sub('', f'{prefix}.{name}'.lstrip('.')): value
        for prefix, module in model.named_modules()
        for name, value in [*module._parameters.items(), *module._buffers.items()]
        if value is not None and name not in module._non_persistent_buffers_set
    }
