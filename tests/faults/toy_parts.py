"""The model, data and metric of ``toy.py``, known to mmengine by their names."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS
from torch import Tensor, nn

LOADED = []  # the indices of all samples that this process has loaded


@MODELS.register_module()
class ToyNet(BaseModel):
    """Uses random numbers of torch, NumPy and Python in training, as drop path, dropout and RoI sampling do.

    Args:
        bad_at: At this forward pass of the training the loss is ``bad_value``.
        bad_feature: In inference, the last layer gives NaN.
    """

    def __init__(
        self,
        bad_at: int = 0,
        bad_value: float = float('nan'),
        bad_feature: bool = False,
        data_preprocessor: dict | None = None,
    ) -> None:
        super().__init__(data_preprocessor)
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Conv2d(8, 2, 1)
        self.bad_at, self.bad_value, self.bad_feature, self.passes = bad_at, bad_value, bad_feature, 0

    def forward(self, inputs: Tensor, data_samples: Any = None, mode: str = 'tensor') -> Any:
        out = self.norm(self.conv(inputs))
        if mode != 'loss':
            return list(self.head(out * 3e38 * 10 if self.bad_feature else out))
        self.passes += 1
        kept = torch.from_numpy(np.random.permutation(8)[:6])  # a sampler of RoIs
        out = self.head(self.dropout(out) * (random.random() < 0.8))[:, :, : len(kept)]
        loss = (out - inputs.mean()).square().mean() + 1e-3 * self.head.bias.square().sum() * float(kept[0])
        return dict(loss=loss * self.bad_value if self.passes == self.bad_at else loss)


@DATASETS.register_module()
class ToyImages:
    """Images of noise, the same in every run, with augmentation by random numbers of all three libraries."""

    def __init__(self, length: int = 12, augment: bool = False, bad: tuple[int, ...] = ()) -> None:
        self.length, self.augment, self.bad = length, augment, bad
        self.metainfo = dict(classes=('thing',))

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict:
        LOADED.append(int(index))
        image = torch.randn(3, 12, 12, generator=torch.Generator().manual_seed(int(index)))
        if self.augment:
            image = image * random.random() + float(np.random.rand()) * torch.rand(1)
        if index in self.bad:
            image[0, 0, 0] = float('inf')
        return dict(inputs=image, data_samples=SimpleNamespace(img_path=f'image_{int(index)}.jpg'))


@METRICS.register_module()
class ToyMetric(BaseMetric):
    """``score``: the values given, one after the other."""

    def __init__(self, scores: tuple[float, ...] = (0.5,)) -> None:
        super().__init__()
        self.scores = list(scores)

    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results.append(0)

    def compute_metrics(self, results: list) -> dict[str, float]:
        return dict(score=self.scores.pop(0) if len(self.scores) > 1 else self.scores[0])


@METRICS.register_module()
class OutputMetric(BaseMetric):
    """``score``: the mean size of what the model has returned, which changes with its weights."""

    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results += [float(output.abs().mean()) for output in data_samples]

    def compute_metrics(self, results: list) -> dict[str, float]:
        return dict(score=sum(results) / len(results))
