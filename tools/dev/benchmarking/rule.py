"""What it takes of a step to ask whether a block may run fused: the subcommand ``rule``.

Steps are taken with the rule and, in turn with them, with its answers known beforehand.
"""

from __future__ import annotations

import argparse
import gc
import json
import shlex
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarking.machine import machine
from benchmarking.subjects import KINDS_OF_BLOCKS
from convnext_dense import ConvNeXt
from convnext_dense.errors import UserError
from convnext_dense.models import block as block_module
from convnext_dense.models.fusion_rule import SWITCH, what_to_fuse
from convnext_dense.run.options import height_and_width

LOOPS = 1000  # of the rule over all blocks, with nothing in between


class Timed:
    """Stands for the rule in the blocks, and adds up the seconds that its answers take.

    Attributes:
        rule: What gives the answers.
        seconds: Since it was last set to 0.
    """

    def __init__(self, rule: Callable[[nn.Module, Tensor], Any]) -> None:
        self.rule = rule
        self.seconds = 0.0

    def __call__(self, block: nn.Module, x: Tensor) -> Any:
        begin = time.perf_counter()
        answer = self.rule(block, x)
        self.seconds += time.perf_counter() - begin
        return answer


def run(args: argparse.Namespace, argv: Sequence[str]) -> None:
    """Measure, print and write the figures.

    Args:
        args: Parsed arguments of the subcommand.
        argv: As given, for the file.

    Raises:
        UserError: The plain block runs in any case.
    """
    if args.threads:
        torch.set_num_threads(args.threads)
    result = dict(
        command=f'python tools/dev/benchmark.py {shlex.join(argv)}',
        machine=machine(torch.device('cpu')),
        train=measure(args, training=True),
        inference=measure(args, training=False),
    )
    text = json.dumps(result, indent=1)
    print(text)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(text + '\n')


def measure(args: argparse.Namespace, training: bool) -> dict[str, Any]:
    """Measure steps of forward and backward, or unprepared inference.

    Args:
        args: Parsed arguments of the subcommand.
        training: Which of the two.

    Returns:
        Number of blocks, and medians over the rounds in microseconds, each of one whole step:

        - ``step``, ``step_without_rule``: the steps, and ``median_difference`` of those of a round;
        - ``rule_in_step``: all answers where a step asks for them, between the kernels of the blocks, without what it
          takes to note the time;
        - ``rule_behind_step``: the same blocks asked one after another, behind the step;
        - ``rule_in_loop``: the fastest that it gets, asked again and again.

        The last three once more as ``shares`` of the step.
    """
    torch.manual_seed(0)
    model = ConvNeXt(args.arch, **KINDS_OF_BLOCKS[args.v2]).train(training)
    image = torch.randn(args.batch, 3, *height_and_width(args.size))
    inputs: dict[nn.Module, Tensor] = {}
    known: dict[nn.Module, Any] = {}

    def remember(block: nn.Module, x: Tensor) -> Any:
        inputs[block], known[block] = x.detach(), what_to_fuse(block, x)
        return known[block]

    def recall(block: nn.Module, x: Tensor) -> Any:
        return known[block]

    timed = Timed(remember)
    seconds: dict[str, list[float]] = {
        name: [] for name in ('step', 'step_without_rule', 'in_step', 'timer', 'behind_step')
    }
    block_module.what_to_fuse = timed  # type: ignore[assignment]
    gc.disable()
    try:
        step(model, image)
        if None in known.values():
            raise UserError(f'no block runs fused here, so that there is nothing to compare: unset {SWITCH}')
        for number in range(args.warmup + args.rounds):
            for with_rule in (True, False) if number % 2 else (False, True):
                timed.rule, timed.seconds = (what_to_fuse if with_rule else recall), 0.0
                elapsed = step(model, image)
                if number < args.warmup:
                    continue
                seconds['step' if with_rule else 'step_without_rule'].append(elapsed)
                seconds['in_step' if with_rule else 'timer'].append(timed.seconds)
                if with_rule:
                    seconds['behind_step'].append(ask(inputs))
        loops = [ask(inputs) for _ in range(LOOPS)]
    finally:
        gc.enable()
        block_module.what_to_fuse = what_to_fuse
    differences = [one - other for one, other in zip(seconds['step'], seconds['step_without_rule'], strict=True)]
    median = {name: statistics.median(values) for name, values in seconds.items()}
    rule = dict(
        rule_in_step=median['in_step'] - median['timer'],
        rule_behind_step=median['behind_step'],
        rule_in_loop=statistics.median(loops),
    )
    return dict(
        blocks=len(inputs),
        step=microseconds(median['step']),
        step_without_rule=microseconds(median['step_without_rule']),
        median_difference=microseconds(statistics.median(differences)),
        **{name: microseconds(value) for name, value in rule.items()},
        shares={name: round(value / median['step'], 5) for name, value in rule.items()},
    )


def step(model: nn.Module, image: Tensor) -> float:
    """Return the seconds of a forward pass, and in training of the backward pass too."""
    model.zero_grad()
    begin = time.perf_counter()
    with torch.set_grad_enabled(model.training):
        outputs = model(image)
        if model.training:
            sum(out.mean() for out in outputs).backward()
    return time.perf_counter() - begin


def ask(inputs: dict[nn.Module, Tensor]) -> float:
    """Return the seconds of asking the rule about every block with its input."""
    begin = time.perf_counter()
    for block, x in inputs.items():
        what_to_fuse(block, x)
    return time.perf_counter() - begin


def microseconds(seconds: float) -> float:
    return round(seconds * 1e6, 1)
