"""Nothing trains on, saves, resumes or tests numbers that are not finite.

mmengine trains on after a NaN, saves the weights that it made, and ends with exit status 0.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_gather_object, all_reduce, is_distributed, is_main_process
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from convnext_dense.durable import write_durably
from convnext_dense.errors import UserError
from convnext_dense.models.block import Block
from convnext_dense.weights.sources import SCHEME

RECORDS = 'nonfinite_steps.json'  # in the work folder
MAX_NAMES = 5  # in a message


@dataclass
class Batch:
    """What a message says about one batch.

    Attributes:
        iteration: Its number, from 1.
        files: Its images.
        losses: By the names of the model; tensors of one number.
    """

    iteration: int
    files: list[str]
    losses: dict[str, Tensor]

    def total(self) -> Tensor:
        """Return the sum of the losses, the number that the backward pass begins with."""
        return torch.stack(list(self.losses.values())).sum()


class FiniteStepsHook(Hook):
    """Stop the training before an optimizer steps with a loss or gradient that is NaN or infinite.

    The losses are those that the model's forward pass returns. Losses and gradients are read once per step, before the
    optimizer's own step, in one synchronization with the device. All processes agree on the outcome. The iteration and
    the image files of its batch are in the message and in ``nonfinite_steps.json`` in the work folder.

    A loss scaler for float16 looks for the scale at which gradients overflow and skips such steps by itself: those do
    not count, as long as the loss is finite.

    Args:
        max_skipped: Skip up to so many bad steps in a row instead: no parameter, no state of the optimizer and no
            running statistic changes. One more stops.
    """

    priority = 'VERY_HIGH'

    def __init__(self, max_skipped: int = 0) -> None:
        if max_skipped < 0:
            raise UserError(f'the number of steps to skip is {max_skipped}: give 0 (stop at the first) or more')
        self.max_skipped = max_skipped
        self.skipped = 0  # in a row
        self.records: list[dict] = []
        self._batches: list[Batch] = []  # since the last step
        self._buffers: list[Tensor] = []
        self._kept_buffers: list[Tensor] = []
        self._handles: list[RemovableHandle] = []

    def before_train(self, runner: Runner) -> None:
        check_model(runner.model, 'the model to train')
        model = _unwrapped(runner.model)
        self._handles.append(model.register_forward_hook(self._keep_losses))
        for wrapper in _optim_wrappers(runner.optim_wrapper):
            self._handles.append(
                wrapper.optimizer.register_step_pre_hook(lambda optimizer, *_: self._before_step(runner, optimizer))
            )
        if self.max_skipped:
            self._buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]

    def after_train(self, runner: Runner) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self._batches.append(Batch(runner.iter + 1, image_files(data_batch), {}))
        if self.max_skipped:
            self._kept_buffers = [buffer.clone() for buffer in self._buffers]

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if not self._batches:
            return
        if any(hasattr(wrapper, 'loss_scaler') for wrapper in _optim_wrappers(runner.optim_wrapper)):
            self._check(runner, [])  # the scaler has skipped the step: because of the scale, or of the loss?
        elif not _accumulates(runner.optim_wrapper):
            self._batches.clear()

    def _keep_losses(self, model: nn.Module, args: tuple, output: Any) -> None:
        """Keep what the forward pass returns in training, a dict of losses."""
        if isinstance(output, dict) and model.training and self._batches:
            self._batches[-1].losses = losses_of(output)

    def _before_step(self, runner: Runner, optimizer: torch.optim.Optimizer) -> None:
        under_scaler = getattr(optimizer, 'found_inf', None) is not None  # a fused step, which tests this itself
        parameters = [p for group in optimizer.param_groups for p in group['params'] if p.grad is not None]
        if not self._check(runner, [] if under_scaler else parameters):
            optimizer.zero_grad(set_to_none=True)  # every optimizer of torch leaves such parameters as they are
            for buffer, kept in zip(self._buffers, self._kept_buffers):
                buffer.copy_(kept)

    @torch.no_grad()
    def _check(self, runner: Runner, parameters: Sequence[nn.Parameter]) -> bool:
        """Return whether the step may be taken; count one that may not, and stop if there were too many in a row."""
        batches, self._batches = self._batches, []
        numbers = [batch.total() for batch in batches if batch.losses]
        if parameters:
            numbers.append(_norm([parameter.grad for parameter in parameters if parameter.grad is not None]))
        if not numbers:
            return True
        is_bad = ~torch.isfinite(torch.stack([number.float() for number in numbers])).all()
        if is_distributed():
            is_bad = is_bad.to(torch.uint8)
            all_reduce(is_bad, 'max')
        if not is_bad.item():
            self.skipped = 0
            return True
        self._report(runner, batches, parameters)
        return False

    def _report(self, runner: Runner, batches: list[Batch], parameters: Sequence[nn.Parameter]) -> None:
        """Write what is known of a bad step to the work folder, and raise UserError unless it may be skipped."""
        self.skipped += 1
        record = self._record(runner, batches, parameters)
        if is_main_process():
            self.records.append(record)
            try:
                write_durably(Path(runner.work_dir) / RECORDS, json.dumps(self.records, indent=2) + '\n')
            except OSError as error:  # the message below says the same
                print_log(f'{RECORDS} could not be written: {error}', logger='current')
        files = record['files']
        shown = ', '.join(files[:MAX_NAMES]) + (f' and {len(files) - MAX_NAMES} more' if len(files) > MAX_NAMES else '')
        what = f'{record["found"]} at iteration {record["iteration"]}, images: {shown or "unknown"}'
        if self.skipped <= self.max_skipped:
            print_log(
                f'skipped a step, {self.skipped} of at most {self.max_skipped} in a row: {what}', logger='current'
            )
            return
        in_a_row = f'{self.skipped} bad steps in a row, the last: ' if self.skipped > 1 else ''
        raise UserError(
            f'{in_a_row}{what} ({RECORDS} in {runner.work_dir} lists them): no step was taken and nothing was saved '
            'after it; look at these images and their labels, lower the learning rate or lengthen the warm-up, or skip '
            'up to N such steps in a row by --skip-nonfinite N'
        )

    def _record(self, runner: Runner, batches: list[Batch], parameters: Sequence[nn.Parameter]) -> dict[str, Any]:
        """Describe a bad step, with the batches of every process."""
        losses, files = {}, []
        suspects = [batch for batch in batches if batch.losses and not torch.isfinite(batch.total())] or batches
        for batch in suspects:
            files += batch.files
            losses.update({name: str(value.item()) for name, value in batch.losses.items() if not _finite(value)})
        names = {id(parameter): name for name, parameter in _unwrapped(runner.model).named_parameters()}
        gradients = []
        for parameter in parameters:
            if parameter.grad is not None and not _finite(parameter.grad):
                gradients.append(names.get(id(parameter), '?'))
        found: dict[str, Any] = dict(losses=losses, files=files, gradients=gradients)
        everywhere = all_gather_object(found) if is_distributed() else [found]
        culprits = [one for one in everywhere if one['losses']] or everywhere
        merged: dict[str, Any] = dict(iteration=batches[-1].iteration if batches else runner.iter + 1)
        merged['losses'] = {name: value for one in culprits for name, value in one['losses'].items()}
        merged['gradients'] = sorted({name for one in culprits for name in one['gradients']})
        merged['files'] = [file for one in culprits for file in one['files']]
        if merged['losses']:
            merged['found'] = ', '.join(f'{name} is {value}' for name, value in merged['losses'].items())
        elif merged['gradients']:
            shown = ', '.join(merged['gradients'][:2])
            merged['found'] = f'the gradients of {len(merged["gradients"])} parameters are not finite ({shown}, ...)'
        else:
            merged['found'] = 'the norm of the gradients overflows'
        return merged


class FiniteModelHook(Hook):
    """Refuse to load, save, validate or test a model that is, or computes, NaN or infinite.

    Such a model finds nothing, which looks like an AP of 0. The weights are read before each validation and test; in
    its first batch the outputs of all layers are read too.
    """

    priority = 'VERY_LOW'  # EMAHook has exchanged the weights

    def __init__(self) -> None:
        self._handles: list[RemovableHandle] = []
        self._outputs: dict[str, Tensor] = {}  # whether finite, by the name of the layer, in the order of calls

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        source = str(runner._load_from).removeprefix(SCHEME)
        check_tensors(checkpoint['state_dict'], f'the checkpoint {source}')
        if runner._resume:
            check_tensors(_optimizer_state(checkpoint.get('optimizer')), f'the optimizer in the checkpoint {source}')

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        check_tensors(checkpoint['state_dict'], 'the model to save')

    def before_val_epoch(self, runner: Runner) -> None:
        check_model(runner.model, 'the model to validate')

    def before_test_epoch(self, runner: Runner) -> None:
        check_model(runner.model, 'the model to test')

    def before_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self._watch(runner, batch_idx)

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self._check(data_batch)

    def before_test_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self._watch(runner, batch_idx)

    def after_test_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self._check(data_batch)

    def _watch(self, runner: Runner, batch_idx: int) -> None:
        if batch_idx:
            return
        for name, layer in _leaf_layers(_unwrapped(runner.model)):
            self._handles.append(layer.register_forward_hook(self._keeper(name)))

    def _keeper(self, name: str) -> Any:
        def keep(layer: nn.Module, args: tuple, output: Any) -> None:
            if isinstance(output, Tensor) and output.is_floating_point() and name not in self._outputs:
                self._outputs[name] = torch.isfinite(output).all()

        return keep

    def _check(self, data_batch: Any) -> None:
        if not self._handles:
            return
        for handle in self._handles:
            handle.remove()
        outputs = dict(self._outputs)
        self._handles.clear()
        self._outputs.clear()
        for name, is_finite in outputs.items():
            if not is_finite:
                raise UserError(
                    f'the layer {name} computes NaN or infinite numbers for {", ".join(image_files(data_batch)[:1])}, '
                    'though all weights are finite: the model has diverged, take an earlier checkpoint'
                )


def check_model(model: nn.Module, what: str) -> None:
    """Raise UserError if a parameter or buffer of ``model`` is NaN or infinite."""
    # Not state_dict(): of a sharded model it gathers the shards; these are the ones that this process has.
    check_tensors({**dict(model.named_parameters()), **dict(model.named_buffers())}, what)


def check_tensors(tensors: Mapping[str, Any], what: str) -> None:
    """Raise UserError if one of ``tensors`` is NaN or infinite.

    Args:
        tensors: By name; values of other kinds are passed over.
        what: Names their place in the message.
    """
    bad = nonfinite_names(tensors)
    if bad:
        shown = ', '.join(bad[:3]) + (', ...' if len(bad) > 3 else '')
        raise UserError(
            f'{what} has NaN or infinite numbers in {len(bad)} of its {len(tensors)} tensors ({shown}): '
            'it cannot be used: take an earlier checkpoint'
        )


def nonfinite_names(tensors: Mapping[str, Any]) -> list[str]:
    """Return the names of the tensors that hold NaN or infinite numbers."""
    floating = {
        name: value
        for name, value in tensors.items()
        if isinstance(value, Tensor) and value.is_floating_point() and value.numel()
    }
    if not floating:
        return []
    are_finite = torch.stack([torch.isfinite(value).all().cpu() for value in floating.values()])
    if are_finite.all():
        return []
    return [name for name, is_finite in zip(floating, are_finite.tolist()) if not is_finite]


def _optimizer_state(state_dict: Any) -> dict[str, Any]:
    """Return the tensors of an optimizer's state dict under the numbers of their parameters."""
    states = state_dict.get('state') if isinstance(state_dict, dict) else None
    tensors = {}
    for number, state in (states or {}).items():
        for name, value in state.items() if isinstance(state, dict) else ():
            tensors[f'{number}.{name}'] = value
    return tensors


def losses_of(output: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the losses in what a model's forward pass returns, each as one number, as mmengine sums them."""
    losses = {}
    for name, value in output.items():
        parts = value if isinstance(value, (list, tuple)) else [value]
        if 'loss' in name and parts and all(isinstance(part, Tensor) for part in parts):
            means = [part.detach().float().mean() for part in parts]
            losses[name] = means[0] if len(means) == 1 else torch.stack(means).sum()
    return losses


def image_files(data_batch: Any) -> list[str]:
    """Return the image files of a batch of mmdet or mmseg, as far as it names them."""
    samples = data_batch.get('data_samples') if isinstance(data_batch, dict) else None
    if isinstance(samples, dict):  # branches of semi-supervised training
        samples = [sample for branch in samples.values() for sample in branch or []]
    return [str(sample.img_path) for sample in samples or [] if hasattr(sample, 'img_path')]


def _norm(gradients: list[Tensor]) -> Tensor:
    """Return the norm of all gradients: not finite if one of them is not."""
    return torch.linalg.vector_norm(torch.stack([norm.float() for norm in torch._foreach_norm(gradients)]))


def _finite(value: Tensor) -> bool:
    return bool(torch.isfinite(value).all())


def _unwrapped(model: nn.Module) -> nn.Module:
    inner: Any = model.module if is_model_wrapper(model) else model
    return inner


def _optim_wrappers(optim_wrapper: Any) -> list[OptimWrapper]:
    """Return the wrappers in an OptimWrapperDict, or the one."""
    return list(getattr(optim_wrapper, 'optim_wrappers', {0: optim_wrapper}).values())


def _accumulates(optim_wrapper: Any) -> bool:
    return any(wrapper._accumulative_counts > 1 for wrapper in _optim_wrappers(optim_wrapper))


def _leaf_layers(model: nn.Module, prefix: str = '') -> Iterable[tuple[str, nn.Module]]:
    """Yield layers without parts of their own; not those of a ConvNeXt block, which runs as one function."""
    children = list(model.named_children())
    if not children:
        yield prefix, model
    for name, child in children:
        if not isinstance(child, Block):
            yield from _leaf_layers(child, f'{prefix}.{name}' if prefix else name)
