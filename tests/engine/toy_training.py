"""A training of a small model by mmengine's own runner, that tests of our hooks share; it needs no toolkit."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils.data import DataLoader


class ToyModel(BaseModel):
    """A convolution, a BatchNorm and dropout; its loss is the mean square."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        self.dropout = nn.Dropout(dropout)

    def forward(self, inputs: Tensor, data_samples: Any = None, mode: str = 'tensor') -> Any:
        out = self.dropout(self.norm(self.conv(inputs)) * self.conv.weight.mean())
        if mode == 'loss':
            return dict(loss_square=(out - 1).square().mean(), loss_parts=[out.mean(), out.std()], accuracy=out.max())
        return [out]


def collate(rows: list[tuple[int, Tensor]]) -> dict[str, Any]:
    """A batch as the toolkits make it: images, and samples that know their files."""
    return dict(
        inputs=torch.stack([image for _, image in rows]),
        data_samples=[SimpleNamespace(img_path=f'image_{number}.jpg') for number, _ in rows],
    )


def images(count: int = 8) -> list[tuple[int, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(number, torch.randn(3, 8, 8, generator=generator)) for number in range(count)]


def toy_runner(
    work_dir: Path, rows: list | None = None, model: nn.Module | None = None, dropout: float = 0.0, **options: Any
) -> Runner:
    """A runner of eight images in batches of two, not shuffled."""
    torch.manual_seed(0)
    options.setdefault('randomness', dict(seed=0))
    options.setdefault('train_cfg', dict(by_epoch=True, max_epochs=2))
    options.setdefault('optim_wrapper', dict(optimizer=dict(type='AdamW', lr=0.01)))
    return Runner(
        model=model or ToyModel(dropout),
        work_dir=str(work_dir),
        train_dataloader=DataLoader(rows or images(), batch_size=2, collate_fn=collate),
        default_scope='mmengine',
        experiment_name=f'toy{random.random()}',
        log_level='ERROR',
        **options,
    )
