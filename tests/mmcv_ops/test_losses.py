"""Focal losses and synchronized batch normalization against their formulas."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck

# The last row is background.
TARGET = torch.tensor([0, 2, 1, 2, 3])
WEIGHT = torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64)


@pytest.fixture
def logits() -> Tensor:
    """Five rows of three classes."""
    return torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2


def binary(logit: float, is_target: bool, gamma: float, alpha: float) -> float:
    p = 1 / (1 + math.exp(-logit))
    if is_target:
        return -alpha * (1 - p) ** gamma * math.log(p)
    return -(1 - alpha) * p**gamma * math.log(1 - p)


@pytest.mark.parametrize('gamma, alpha', [(2.0, 0.25), (1.5, 0.6)])
def test_sigmoid_focal_loss(ops, logits, gamma, alpha):
    for weight in (None, WEIGHT):
        # Background has no weight of its own.
        factors = [0.5, 3, 2, 3, 1] if weight is not None else [1] * 5
        expected = []
        for n in range(5):
            row = [binary(float(logits[n, c]), c == TARGET[n], gamma, alpha) for c in range(3)]
            expected.append([factors[n] * loss for loss in row])
        found = ops.sigmoid_focal_loss(logits, TARGET, gamma, alpha, weight, 'none')
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
        found = ops.sigmoid_focal_loss(logits, TARGET, gamma, alpha, weight, 'mean')
        assert float(found) == pytest.approx(sum(map(sum, expected)) / 5)
        for reduction in ('none', 'sum', 'mean'):
            assert gradcheck(
                lambda x, w=weight, r=reduction: ops.sigmoid_focal_loss(x, TARGET, gamma, alpha, w, r),
                logits.requires_grad_(),
            )
        logits.requires_grad_(False)


def test_sigmoid_focal_loss_of_large_logits(ops):
    """Wrong by 50: the loss is 0.75 times the logit; right by 50: 0."""
    logits = torch.tensor([[50.0], [-50.0]], requires_grad=True)
    loss = ops.sigmoid_focal_loss(logits, torch.tensor([1, 1]), 2.0, 0.25, None, 'none')
    assert loss.flatten().tolist() == [37.5, 0]
    loss.sum().backward()
    assert logits.grad.flatten().tolist() == [0.75, 0]


@pytest.mark.parametrize('gamma, alpha', [(2.0, 0.25), (1.5, 0.6)])
def test_softmax_focal_loss(ops, logits, gamma, alpha):
    target = torch.tensor([0, 2, 1, 2, -1])
    for weight in (None, WEIGHT):
        factors = [0.5, 3, 2, 3] if weight is not None else [1] * 4
        expected = []
        for n, factor in enumerate(factors):
            p = math.exp(logits[n, target[n]]) / sum(math.exp(logit) for logit in logits[n])
            expected.append(-factor * alpha * (1 - p) ** gamma * math.log(p))
        found = ops.softmax_focal_loss(logits, target, gamma, alpha, weight, 'none')
        assert found.tolist() == pytest.approx([*expected, 0])
        for reduction in ('sum', 'mean'):
            assert gradcheck(
                lambda x, w=weight, r=reduction: ops.softmax_focal_loss(x, target, gamma, alpha, w, r),
                logits.requires_grad_(),
            )
        logits.requires_grad_(False)


@pytest.mark.parametrize('dtype, bound', [(torch.float16, 1e-3), (torch.bfloat16, 8e-3)])
@pytest.mark.parametrize('name', ['sigmoid_focal_loss', 'softmax_focal_loss'])
def test_focal_losses_in_half_types(ops, logits, name, dtype, bound):
    half = logits[:4].to(dtype).requires_grad_()
    exact = getattr(ops, name)(half.detach().double(), TARGET[:4])
    with torch.autocast('cpu', dtype=torch.bfloat16):
        found = getattr(ops, name)(half, TARGET[:4])
    assert found.item() == pytest.approx(exact.item(), rel=10 * bound)
    found.backward()
    assert half.grad.dtype == dtype and half.grad.abs().sum() > 0


@pytest.mark.parametrize('dtype, bound', [(torch.float32, 1e-6), (torch.float16, 2e-3)])
@pytest.mark.parametrize('stats_mode', ['default', 'N'])
def test_sync_bn(ops, one_process, stats_mode, dtype, bound):
    """Values, gradients and running statistics as those of torch's batch normalization in fp64."""
    generator = torch.Generator().manual_seed(0)
    images = (torch.randn(3, 4, 5, 2, generator=generator) * 3 + 1).to(dtype)
    layer = ops.SyncBatchNorm(4, stats_mode=stats_mode)
    factors = torch.randn(3, 4, 5, 2, generator=generator)
    exact_images = images.double().requires_grad_()
    weight, bias = layer.weight.detach().double().requires_grad_(), layer.bias.detach().double().requires_grad_()
    running_mean, running_var = torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    exact = F.batch_norm(exact_images, running_mean, running_var, weight, bias, True, 0.1, 1e-5)
    (exact * factors).sum().backward()

    found = layer(images.requires_grad_())
    assert found.dtype == dtype
    (found * factors).sum().backward()
    pairs = [
        (found, exact),
        (images.grad, exact_images.grad),
        (layer.weight.grad, weight.grad),
        (layer.bias.grad, bias.grad),
        (layer.running_mean, running_mean),
        (layer.running_var, running_var),
    ]
    for ours, formula in pairs:
        assert (ours.double() - formula).abs().max() <= bound * formula.abs().max()


def test_sync_bn_of_two_processes_takes_unbiased_variance_of_both(extension):
    """8 values a channel, 2 processes: 16 / 15 of the variance moves the running one."""
    images, ones = torch.zeros(2, 1, 4), torch.ones(1)
    running_mean, running_var = torch.zeros(1), torch.zeros(1)
    norm, std, output = torch.zeros(2, 1, 4), torch.zeros(1), torch.zeros(2, 1, 4)
    extension.sync_bn_forward_output(
        images, 2 * ones, 15 * ones, None, None, running_mean, running_var, norm, std, output, 1.0, 0.5, 2
    )
    assert (running_mean.item(), running_var.item(), std.item()) == (1, 8, 4)
    assert output.unique().tolist() == [-0.5]
