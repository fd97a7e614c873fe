"""The official formulation, which every row must equal before it is timed."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn

from benchmarking.rows import Row, environment
from benchmarking.subjects import Subject, Task, random_gradients
from convnext_dense.errors import UserError

# Relative difference from the official formulation in fp32 that is allowed: outputs, and the gradient of the stem.
TOLERANCES = {'fp32': (1e-4, 1e-3), 'bf16': (5e-2, 2e-1), 'fp16': (1e-2, 5e-2)}
TF32_TOLERANCE = (1e-2, 5e-2)  # convolutions of fp32 on GPUs


def tolerances(dtype: str, device: torch.device) -> tuple[float, float]:
    """Return the allowed relative differences of outputs and of the stem's gradient."""
    return TF32_TOLERANCE if dtype == 'fp32' and device.type == 'cuda' else TOLERANCES[dtype]


class Reference:
    """Outputs of the official formulation in fp32, and in training the gradient of its stem."""

    def __init__(self, task: Task) -> None:
        self.task = task
        # Features and gradient are those of the backbone alone, without stochastic depth.
        self.with_gradient = task.train and task.drop_path == 0
        backbone_task = copy.copy(task)
        backbone_task.options, backbone_task.model = replace(task.options, cast=False), None
        self.outputs, self.gradient = self._run(Subject(Row('official', 'official', 'fp32'), backbone_task))

    def _run(self, subject: Subject) -> tuple[list[Tensor], Tensor | None]:
        model = subject.model
        if model is not None and not self.with_gradient:
            model.eval()
        gradient = None
        with environment(subject.row.environment), torch.set_grad_enabled(self.with_gradient):
            with subject.autocast(), subject.backbone_autocast():
                outputs = subject.features(self.task.image)
            if self.with_gradient and model is not None:
                torch.autograd.backward(outputs, random_gradients(outputs))
                gradient = _stem_gradient(model).clone()
        if model is not None:
            model.train(self.task.train)
            model.zero_grad(set_to_none=True)
        return [output.detach().float() for output in outputs], gradient

    def check(self, subject: Subject) -> dict[str, float]:
        """Return the relative differences of a row: of its outputs, the largest, and of the stem's gradient.

        Raises:
            UserError: They are above :data:`TOLERANCES`.
        """
        outputs, gradient = self._run(subject)
        pairs = zip(outputs, self.outputs, strict=True)
        differences = {'outputs': max(relative_difference(found, wanted) for found, wanted in pairs)}
        if gradient is not None and self.gradient is not None:
            differences['gradient'] = relative_difference(gradient, self.gradient)
        for (what, difference), allowed in zip(
            differences.items(), tolerances(subject.row.dtype, self.task.device), strict=False
        ):
            if not difference <= allowed:
                raise UserError(
                    f'the {what} of {subject.row.key} differ from the official formulation by '
                    f'{difference:.1e} (relative, at most {allowed:.0e} is allowed): its time would mean '
                    'nothing; leave it out by --only, or find the error'
                )
        return differences


def _stem_gradient(model: nn.Module) -> Tensor:
    """Return the gradient of the first convolution."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.grad is not None
            return module.weight.grad.float()
    raise ValueError(f'{type(model).__name__} has no convolution')


def relative_difference(found: Tensor, wanted: Tensor) -> float:
    """Return the norm of the difference over the norm of what is wanted."""
    return ((found.float() - wanted).norm() / wanted.norm()).item()
