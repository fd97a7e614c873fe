"""The options of a measurement, complete and checked."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path

import torch

from convnext_dense.errors import UserError
from convnext_dense.run.options import height_and_width

DEFAULT_BATCH = {'inference': 1, 'train': 2}
DEFAULT_SIZE = {'inference': (800, 1344), 'train': (512, 512)}


@dataclass
class Options:
    """What to measure, and how; written into the JSON file.

    Attributes:
        command: The subcommand.
        mode: 'inference', 'train' (forward and backward) or 'optimizer'.
        batch: Images of a step; several values for scaling.
        size: (height, width) of an image; several values for scaling.
        v2: Whether the blocks are those of ConvNeXt V2.
        ours, only: Texts of the options ``--ours`` and ``--only``.
    """

    command: str = 'time'
    mode: str = 'inference'
    arch: str = 'tiny'
    v2: bool = False
    config: str | None = None
    cfg_options: list[str] = field(default_factory=list)
    dtype: list[str] = field(default_factory=lambda: ['fp32'])
    cast: bool = False
    batch: list[int] = field(default_factory=list)
    size: list[tuple[int, int]] = field(default_factory=list)
    layout: str = 'auto'
    compile: bool = False
    drop_path: float = 0.0
    ours: list[str] = field(default_factory=list)
    only: list[str] | None = None
    rounds: int = 1
    warmup: int = 1
    threads: int | None = None
    device: str = 'cpu'
    memory: bool = False

    @property
    def train(self) -> bool:
        return self.mode == 'train'


@dataclass
class Outputs:
    """Files to write, and the row whose memory a process measures instead."""

    json: Path | None = None
    markdown: Path | None = None
    plot: Path | None = None
    memory_of: str | None = None


def options_of(args: argparse.Namespace) -> Options:
    """Complete the parsed arguments of a subcommand and check them.

    Raises:
        UserError: A value cannot be used, or options do not go together.
    """
    known = {name: value for name, value in vars(args).items() if name in Options.__dataclass_fields__}
    sizes = known.pop('size', None) or []
    options = Options(**{name: value for name, value in known.items() if value is not None})
    options.device = args.device or ('cuda' if torch.cuda.is_available() else 'cpu')
    if options.command == 'optimizer':
        options.mode = 'optimizer'
    else:
        options.batch = options.batch or [DEFAULT_BATCH[options.mode]]
        options.size = [height_and_width(text) for text in sizes] or [DEFAULT_SIZE[options.mode]]
    _check(options)
    return options


def _check(options: Options) -> None:
    if options.rounds < 1 or options.warmup < 1 or min(options.batch, default=1) < 1:
        raise UserError('--rounds, --warmup and --batch need at least 1')
    if options.command != 'scaling' and (len(options.batch) > 1 or len(options.size) > 1):
        raise UserError('several batches or sizes are for the subcommand scaling: use it, or give one of each')
    if options.cast and options.train:
        raise UserError('--cast is for inference: training in a half type keeps its weights in fp32')
    if options.drop_path and options.config:
        raise UserError('--drop-path: the config has its own rate: --cfg-options model.backbone.drop_path_rate=...')
    if options.v2 and options.config:
        raise UserError('--v2: the config says which blocks it has: model.backbone.use_grn')
    if options.cfg_options and not options.config:
        raise UserError('--cfg-options changes a config: give --config, or leave it out')


def outputs_of(args: argparse.Namespace) -> Outputs:
    """Return the files that the arguments of a subcommand name."""
    return Outputs(**{name: getattr(args, name, None) for name in Outputs.__dataclass_fields__})
