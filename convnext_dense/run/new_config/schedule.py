"""How long to train and how fast, by the number of images and the batch."""

from __future__ import annotations

import math
from dataclasses import dataclass

# Training images below this number, epochs, and whose schedule that is. Detectors.
DETECTION_EPOCHS = (
    (1_000, 100, 'Roboflow 100, arXiv 2211.13523: every data set for 100 epochs'),
    (10_000, 64, 'Mask R-CNN on Cityscapes in mmdet, 2,975 images: 8 epochs of 8 repeats'),
    (math.inf, 36, "COCO in ConvNeXt's recipes, 118,287 images: 36 epochs"),
)
# Segmentors: ADE20K in ConvNeXt's recipe is 127 epochs (20,210 images, 160,000 iterations of 16), Pascal Context in
# mmseg is 128 (4,998, 40,000 of 16), Cityscapes is 108 (2,975, 40,000 of 8).
SEGMENTATION_EPOCHS = 128
SEGMENTATION_IMAGES = 160_000 * 16  # at most, as for ADE20K

VALIDATIONS = 20  # in a training
PATIENCE = 5  # validations without a better one
# A validation is better from a tenth of a point on, to which CocoMetric rounds. AP is a share, mIoU in percent. The
# default of mmengine's hook, 0.1, would end a training that gains 9 points of AP in five validations.
LEAST_GAIN_MAP, LEAST_GAIN_MIOU = 0.0005, 0.05
WARMUP = 500  # iterations, as in the recipes, but
WARMUP_SHARE = 0.1  # at most this part of a training
MILESTONES = (27 / 36, 33 / 36)  # when the recipes' learning rate drops
EMA_SHARE = 0.1  # the part of a training that weights are averaged over


@dataclass(frozen=True)
class Schedule:
    """A training.

    Attributes:
        epochs: Of a detector; of a segmentor what its iterations amount to.
        iterations: In the whole training.
        val_interval: Epochs of a detector, iterations of a segmentor, between two validations.
        warmup: Iterations.
        milestones: Epochs at which the learning rate of a detector drops to a tenth.
        learning_rate: For the batch, in proportion to that of the recipe (P. Goyal et al., arXiv 1706.02677).
        momentum: Of the moving average of the weights.
        source: Whose number of epochs that is.
    """

    epochs: int
    iterations: int
    val_interval: int
    warmup: int
    milestones: tuple[int, ...]
    learning_rate: float
    momentum: float
    source: str


def schedule_of(
    num_images: int,
    batch_size: int,
    is_segmentation: bool,
    recipe_rate: float,
    recipe_batch: int,
    epochs: int | None = None,
) -> Schedule:
    """Return the schedule for a data set.

    Args:
        num_images: For training.
        batch_size: Images per iteration, over all GPUs.
        is_segmentation: Whether a segmentor is trained, by iterations instead of epochs.
        recipe_rate, recipe_batch: Learning rate of the recipe, and the batch that it is for.
        epochs: Instead of those of the table; the rest follows them.
    """
    per_epoch = max(num_images // batch_size, 1)
    if is_segmentation:
        images = min(SEGMENTATION_EPOCHS * num_images, SEGMENTATION_IMAGES)
        by_table, source = max(round(images / num_images), 1), 'ADE20K, Pascal Context and Cityscapes in the toolkits'
        iterations = max((epochs * num_images if epochs else images) // batch_size, 1)
        val_interval = max(iterations // VALIDATIONS, 1)
    else:
        by_table, source = next((count, source) for below, count, source in DETECTION_EPOCHS if num_images < below)
        iterations = (epochs or by_table) * per_epoch
        val_interval = max((epochs or by_table) // VALIDATIONS, 1)
    if epochs:
        source = f'by --epochs, {by_table} by the table'
    else:
        epochs = by_table
    return Schedule(
        epochs=epochs,
        iterations=iterations,
        val_interval=val_interval,
        warmup=max(min(WARMUP, int(WARMUP_SHARE * iterations)), 1),
        milestones=tuple(round(epochs * share) for share in MILESTONES),
        learning_rate=float(f'{recipe_rate * batch_size / recipe_batch:.3g}'),
        momentum=float(f'{min(1 / (EMA_SHARE * iterations), 0.1):.2g}'),
        source=source,
    )
