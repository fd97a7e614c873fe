"""The memory that a step takes: at its peak, and what autograd saves in between."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, nn

from benchmarking.machine import MIB
from benchmarking.peers import BLOCKS
from benchmarking.rows import environment
from benchmarking.subjects import Subject
from convnext_dense.models import fusion_rule


def peak_memory(subject: Subject) -> dict[str, float | None]:
    """Measure the peak of a step, in a process that does nothing else.

    Returns:
        ``peak_mib`` of the process and ``step_mib`` above what is there before a step, in MiB; None where the system
        does not tell.
    """
    cuda = subject.task.device.type == 'cuda'
    before = torch.cuda.memory_allocated() if cuda else process_bytes('VmRSS')
    subject.step()  # lasting things too: weights in other layouts, what a compiler keeps
    subject.clear()
    peak: int | None
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        subject.step()
        peak = torch.cuda.max_memory_allocated()
    else:
        with suppress(OSError):
            Path('/proc/self/clear_refs').write_text('5')  # the high-water mark starts anew
        subject.step()
        peak = process_bytes('VmHWM')
    if before is None or peak is None:
        return dict(peak_mib=None, step_mib=None)
    return dict(peak_mib=round(peak / MIB, 1), step_mib=round((peak - before) / MIB, 1))


def process_bytes(name: str) -> int | None:
    """Return a figure of this process; None where the system is not Linux. (ru_maxrss starts with the parent's.)"""
    path = Path('/proc/self/status')
    if not path.exists():
        return None
    figure = re.search(rf'{name}:\s+(\d+) kB', path.read_text())
    return int(figure[1]) * 1024 if figure else None


def saved_activations(subject: Subject) -> dict[str, float | None]:
    """Count what autograd keeps from forward to backward in the backbone, without stochastic depth.

    Counted with one image and with two: the difference is what an image costs, without weights and copies of them.

    Returns:
        ``saved_mib`` of the batch, and ``bytes_per_token_channel`` of a block (None where blocks are not called).
    """
    assert subject.model is not None
    subject.model.eval()
    one, two = _count_saved(subject, images=1), _count_saved(subject, images=2)
    subject.model.train(subject.task.train)
    per_number = None
    if two.block_numbers:
        # The outputs of the blocks for one image are half as many numbers as those for two.
        per_number = round(2 * (two.in_blocks - one.in_blocks) / two.block_numbers, 2)
    saved_mib = round((two.in_all - one.in_all) * subject.task.batch / MIB, 2)
    return dict(saved_mib=saved_mib, bytes_per_token_channel=per_number)


class SavedBytes(NamedTuple):
    """Bytes that a forward pass saves, in all and of its blocks, and how many numbers its blocks return."""

    in_all: int
    in_blocks: int
    block_numbers: int


@dataclass
class _Saved:
    """What a forward pass saves, each storage once.

    Attributes:
        storages: (storage, whether a block saved it) by address; kept, or an address would be used again.
        block_inputs: Inputs of blocks by address; a checkpoint saves them outside of its block.
        block_numbers: Numbers in the outputs of all blocks.
    """

    storages: dict[int, tuple[Any, bool]] = field(default_factory=dict)
    block_inputs: dict[int, Tensor] = field(default_factory=dict)
    block_numbers: int = 0
    inside_block: bool = False

    def save(self, tensor: Tensor) -> Tensor:
        """As the pack hook of autograd."""
        if tensor.layout == torch.strided:  # oneDNN's opaque layouts are weights
            storage = tensor.untyped_storage()
            self.storages.setdefault(storage.data_ptr(), (storage, self.inside_block))
        return tensor

    def enter_block(self, block: nn.Module, args: tuple[Tensor, ...]) -> None:
        """As a forward pre-hook."""
        self.inside_block = True
        self.block_inputs[args[0].untyped_storage().data_ptr()] = args[0]

    def leave_block(self, block: nn.Module, args: Any, output: Tensor) -> None:
        """As a forward hook."""
        self.inside_block = False
        self.block_numbers += output.numel()

    def count(self) -> SavedBytes:
        in_all = in_blocks = 0
        for address, (storage, saved_by_block) in self.storages.items():
            in_all += storage.nbytes()
            if saved_by_block or address in self.block_inputs:
                in_blocks += storage.nbytes()
        return SavedBytes(in_all, in_blocks, self.block_numbers)


def _count_saved(subject: Subject, images: int) -> SavedBytes:
    """Run the backbone forward on some images and count what it saves."""
    assert subject.model is not None
    saved = _Saved()
    handles = []
    for module in subject.model.modules():
        if type(module).__name__ in BLOCKS:
            handles.append(module.register_forward_pre_hook(saved.enter_block))
            handles.append(module.register_forward_hook(saved.leave_block))
    image = subject.task.image[:1].expand(images, -1, -1, -1).contiguous()
    with (
        # Our blocks run plain where hooks look at what is saved; here what they save otherwise is counted.
        patch.object(fusion_rule, '_operations_are_recorded', return_value=False),
        environment(subject.row.environment),
        subject.autocast(),
        subject.backbone_autocast(),
        torch.autograd.graph.saved_tensors_hooks(saved.save, lambda tensor: tensor),
    ):
        subject.features(image)
    for handle in handles:
        handle.remove()
    return saved.count()
