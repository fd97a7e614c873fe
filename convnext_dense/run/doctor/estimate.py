"""How much memory a training needs, and how much disk its checkpoints take, from shapes alone.

Everything runs on torch's meta device: seconds, and next to no memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from torch import Tensor, nn

from convnext_dense.complexity import run_forward
from convnext_dense.data_check.splits import dicts_with_key, step_name
from convnext_dense.models.block import Block
from convnext_dense.models.fusion_rule import plain_parameters

# Values per token and channel that the fused block saves for the backward pass, by its memory mode.
SAVED_BY_FUSED_BLOCK = {'default': 6, 'lean': 2, 'checkpoint': 1}
EMA_HOOK = 'EMAHook'


@dataclass(frozen=True)
class Sizes:
    """Bytes of a training on one device.

    Attributes:
        weights: Parameters and buffers of the model.
        gradients: Of the parameters that are trained.
        optimizer: State of the optimizer.
        averaged: The second model of an EMA hook; 0 without one.
        activations: What the forward pass of one batch saves for the backward pass; None if it is not known.
    """

    weights: int
    gradients: int
    optimizer: int
    averaged: int
    activations: int | None

    @property
    def fixed(self) -> int:
        """What is in memory whatever the batch is."""
        return self.weights + self.gradients + self.optimizer + self.averaged

    @property
    def checkpoint(self) -> int:
        """Size of a checkpoint file that a training can be resumed from."""
        return self.weights + self.optimizer + self.averaged


def measure(model: nn.Module, cfg: Config, on_cpu: bool) -> Sizes:
    """Return the sizes of a training.

    Args:
        model: On the meta device.
        cfg: Its config; the optimizer is built as a training does.
        on_cpu: Whether the training runs on a CPU, where blocks are fused by default.

    Raises:
        Exception: The optimizer cannot be built; whatever its constructor raises.
    """
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    trained = [param for group in optimizer.param_groups for param in group['params'] if param.requires_grad]
    weights = _bytes([*model.parameters(), *model.buffers()])
    has_ema = any(step_name(hook) == EMA_HOOK for hook in cfg.get('custom_hooks') or [])
    return Sizes(
        weights=weights,
        gradients=_bytes(trained),
        optimizer=_optimizer_state(optimizer, trained),
        averaged=weights if has_ema else 0,
        activations=_activations(model, cfg, on_cpu),
    )


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _optimizer_state(optimizer: torch.optim.Optimizer, trained: Sequence[Tensor]) -> int:
    """Return the bytes of an optimizer's state after a step; of one that needs values for it, those of Adam."""
    for param in trained:
        param.grad = torch.empty_like(param)
    try:
        optimizer.step()
    except (RuntimeError, NotImplementedError):  # tensors on the meta device have no values
        return 2 * _bytes(trained)
    finally:
        optimizer.zero_grad()
    tensors = []
    for state in optimizer.state.values():
        tensors += [value for value in state.values() if isinstance(value, Tensor)]
    return _bytes(tensors)


def _activations(model: nn.Module, cfg: Config, on_cpu: bool) -> int | None:
    """Return what the forward pass of one batch saves; the loss and what finds targets are not counted."""
    size = image_size(cfg)
    if size is None:
        return None
    batch = torch.empty(cfg.train_dataloader.get('batch_size') or 1, 3, *size, device='meta')
    for run in (run_forward, _run_features):
        counter = _SavedBytes(model, on_cpu)
        # RoI heads of other kinds, and operators that need values: what is before them still counts.
        with suppress(Exception):
            counter.run(run, batch)
            half = str(cfg.optim_wrapper.get('type')).endswith('AmpOptimWrapper')
            return counter.total // 2 if half else counter.total
    return None


def _run_features(model: Any, image: Tensor) -> None:
    model.extract_feat(image)


class _SavedBytes:
    """Count the bytes that autograd keeps of a forward pass, each tensor once, parameters left out.

    Args:
        model: On the meta device.
        on_cpu: Whether blocks are fused by default.
    """

    def __init__(self, model: nn.Module, on_cpu: bool) -> None:
        self.model = model
        self.total = 0
        self._in_fused_block = False
        self._seen = {tensor.untyped_storage()._cdata for tensor in model.state_dict().values()}
        self._fused = []
        for module in model.modules():
            is_wanted = isinstance(module, Block) and (on_cpu or module.memory is not None)
            if is_wanted and plain_parameters(module) is not None:
                self._fused.append(module)

    def run(self, run: Callable[[Any, Tensor], Any], batch: Tensor) -> None:
        handles = []
        for block in self._fused:
            handles.append(block.register_forward_pre_hook(self._enter))
            handles.append(block.register_forward_hook(self._leave))
        try:
            with torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack), torch.device('meta'):
                run(self.model.train(), batch)
        finally:
            for handle in handles:
                handle.remove()

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if not self._in_fused_block and storage._cdata not in self._seen:
            self._seen.add(storage._cdata)
            self.total += storage.nbytes()
        return tensor

    def _unpack(self, tensor: Tensor) -> Tensor:
        return tensor

    def _enter(self, block: Block, inputs: tuple[Tensor, ...]) -> None:
        self._in_fused_block = True
        (x,) = inputs
        self.total += SAVED_BY_FUSED_BLOCK[block.memory or 'default'] * x.numel() * x.element_size()

    def _leave(self, *_: Any) -> None:
        self._in_fused_block = False


def image_size(cfg: Config) -> tuple[int, int] | None:
    """Return the largest (height, width) of images in training by the config; None if it does not say."""
    for _, part in dicts_with_key(cfg.model, 'model'):
        if step_name(part).endswith('DataPreProcessor') and part.get('size'):
            height, width = part['size']
            return height, width
    dataset: Mapping[str, Any] = cfg.train_dataloader.dataset
    pipeline: Any = None
    while pipeline is None and dataset:  # the outer pipeline of a wrapper comes last
        pipeline = dataset.get('pipeline')
        dataset = dataset.get('dataset') or next(iter(dataset.get('datasets') or []), {})
    sizes = []
    for _, step in dicts_with_key(pipeline or []):
        for key in ('scale', 'scales', 'img_scale'):
            for width, height in _pairs(step.get(key)):  # as mmcv writes it
                # With the ratio kept it is the longer and the shorter side, in any order.
                sizes.append((min(width, height), max(width, height)) if step.get('keep_ratio') else (height, width))
    if not sizes:
        return None
    height, width = max(sizes, key=math.prod)
    for step in pipeline:
        if step_name(step) == 'RandomCrop' and step.get('crop_type', 'absolute') == 'absolute':
            height, width = step['crop_size']
    return height, width


def _pairs(value: Any) -> list[tuple[int, int]]:
    """Return the sizes in a setting that holds one or a list of them."""
    if not isinstance(value, (list, tuple)):
        return []
    if len(value) == 2 and all(isinstance(number, int) for number in value):
        return [(value[0], value[1])]
    found = []
    for item in value:
        found += _pairs(item)
    return found


def number_of_checkpoints(cfg: Config) -> tuple[int, int]:
    """Return how many checkpoints a training keeps: resumable ones, and best ones, which hold weights alone.

    The one that is written before an old one is deleted counts.
    """
    resumable, best = 0, 0
    for hook in [*(cfg.get('default_hooks') or {}).values(), *(cfg.get('custom_hooks') or [])]:
        if not hook or not step_name(hook).endswith('CheckpointHook'):
            continue
        by_epoch = hook.get('by_epoch', True)
        length = cfg.train_cfg.get('max_epochs' if by_epoch else 'max_iters') or 1
        interval = hook.get('interval', -1)
        written = math.ceil(length / interval) if interval > 0 else 1
        kept = hook.get('max_keep_ckpts', -1)
        resumable += min(written, kept + 1) if kept > 0 else written
        saved_best = hook.get('save_best') or []
        best += 1 if isinstance(saved_best, str) else len(saved_best)
    return resumable, best
