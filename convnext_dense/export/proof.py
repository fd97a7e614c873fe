"""Proof that an exported file computes what the toolkit computes.

Three steps on the same images: the toolkit's own ``test_step``, the module that was exported, the file in the runtime.
Detections are matched by label, box and score; those without a partner count as ties only if a difference within the
tolerance explains them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from convnext_dense.errors import UserError
from convnext_dense.export.whole import WholeModel
from convnext_dense.runtime.model import paste_masks
from convnext_dense.runtime.sessions import Session

BOX_TOLERANCE = 0.05  # pixels
SCORE_TOLERANCE = 1e-4
TIE_TOLERANCE = 1e-5  # scores nearer than this are equal: the rounding of fp32 behind a whole network
MASK_TOLERANCE = 1e-3
LABEL_AGREEMENT = 0.9999  # of the pixels
LOGIT_TOLERANCE = 1e-3  # of the largest logit
MAX_TIES = 0.02  # of the detections
MIN_DETECTIONS = 10
SHAPES = ((1, 96, 144), (2, 171, 229), (1, 320, 213))  # batch, height, width; odd ones too, and levels of one place


@dataclass
class Proof:
    """What the comparison found; all differences are the largest ones.

    Attributes:
        shapes: Batch, height and width of the images.
        detections: Compared in all, or None for a segmentor.
        ties: Of them without a partner.
        box: Difference in pixels.
        score: Difference of scores.
        mask: Difference of the probabilities of masks.
        label: Least share of equal pixels of a label map, or None for a detector.
        threshold: The score threshold of the comparison, below that of the file if that leaves too few detections.
    """

    shapes: tuple[tuple[int, int, int], ...]
    detections: int | None = None
    ties: int = 0
    box: float = 0.0
    score: float = 0.0
    mask: float = 0.0
    label: float | None = None
    threshold: float | None = None

    def __str__(self) -> str:
        sizes = ', '.join('x'.join(map(str, (batch, 3, *size))) for batch, *size in self.shapes)
        if self.label is not None:
            return f'at least {self.label:.4%} of the labels equal, at {sizes}'
        lowered = f', at a score threshold of {self.threshold:g}' if self.threshold is not None else ''
        return (
            f'{self.detections} detections equal within {self.box:.1e} pixels, scores {self.score:.1e}, masks '
            f'{self.mask:.1e}, {self.ties} ties{lowered}, at {sizes}'
        )


def prove(
    model: nn.Module,
    whole: WholeModel,
    open_file: Any,
    shapes: tuple[tuple[int, int, int], ...] = SHAPES,
) -> Proof:
    """Compare the toolkit's model, the module over its parts and the exported file.

    Args:
        model: Of mmdet or mmseg.
        whole: The module that was exported.
        open_file: Called with a score threshold or None, returns a session of the file with this threshold in it.
        shapes: Batch, height and width of the images.

    Raises:
        UserError: They differ, or there is too little to compare.
    """
    images = [torch.from_numpy(example_images(*shape, seed=i)) for i, shape in enumerate(shapes)]
    if whole.task == 'segmentation':
        return _prove_segmentor(model, whole, open_file(None), images, shapes)
    return _prove_detector(model, whole, open_file, images, shapes)


def example_images(batch: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return images (batch, 3, height, width) float32 with whole numbers from 0 to 255: rectangles and noise."""
    generator = np.random.default_rng(seed)
    images = np.empty((batch, 3, height, width), np.float32)
    for image in images:
        image[:] = generator.uniform(0, 255, (3, 1, 1))
        for _ in range(40):
            y, x = generator.integers(0, height), generator.integers(0, width)
            tall, wide = (np.array([height, width]) * generator.uniform(0.03, 0.5, 2)).astype(int) + 2
            image[:, y : y + tall, x : x + wide] = generator.uniform(0, 255, (3, 1, 1))
        image += generator.normal(0, 12, image.shape)
    return np.clip(np.rint(images), 0, 255)


# Detectors


@torch.no_grad()
def _prove_detector(model: nn.Module, whole: WholeModel, open_file: Any, images: list[Any], shapes: Any) -> Proof:
    proof = Proof(shapes, detections=0)
    own: Any = whole.score_threshold
    given = float(own)
    limit: Any = whole.max_detections
    thresholds = [given, *(value for value in (given / 10, 0.0) if value < given)]
    for threshold in thresholds:
        with _score_threshold(model, whole, threshold):
            expected = [_as_numpy(whole(image)) for image in images]
            labels = np.concatenate([outputs['labels'].ravel() for outputs in expected])
            classes = len(np.unique(labels[labels >= 0]))
            enough = (labels >= 0).sum() >= MIN_DETECTIONS and classes >= min(2, len(_names(model)))
            if not enough and threshold != thresholds[-1]:
                continue
            if not enough:
                raise UserError(
                    f'the model finds {(labels >= 0).sum()} objects of {classes} classes in the test images even '
                    f'without a score threshold, at least {MIN_DETECTIONS} of two were wanted: this proves nothing, '
                    'check the checkpoint'
                )
            if threshold != given:
                proof.threshold = threshold
            session = open_file(None if threshold == given else threshold)
            for image, wanted in zip(images, expected, strict=True):
                _compare_with_toolkit(model, image, wanted, threshold, limit, proof)
                found = _run(session, image, whole.output_names)
                _check_finite(found)
                for one, other in zip(_by_image(found), _by_image(wanted), strict=True):
                    _compare(one, other, threshold, limit, proof, 'the file', 'the module')
        break
    allowed = max(1, int(MAX_TIES * (proof.detections or 0)))
    if proof.ties > allowed:
        raise UserError(
            f'{proof.ties} of {proof.detections} detections are ties that the file decides otherwise, at most '
            f'{allowed} were wanted: export a trained model'
        )
    return proof


def _compare_with_toolkit(
    model: Any, image: Any, wanted: dict[str, np.ndarray], threshold: float, limit: int, proof: Proof
) -> None:
    """Compare the module's outputs with the toolkit's for one batch; masks as pixels of the image."""
    mask_threshold = None
    if 'masks' in wanted:
        mask_threshold = float(model.test_cfg['rcnn']['mask_thr_binary'])
    for sample, ours in zip(toolkit_samples(model, image), _by_image(wanted), strict=True):
        instances = sample.pred_instances
        theirs = dict(boxes=instances.bboxes.numpy(), scores=instances.scores.numpy(), labels=instances.labels.numpy())
        pairs = _compare(ours, theirs, threshold, limit, proof, 'the module', "the toolkit's model")
        if mask_threshold is None:
            continue
        pasted = paste_masks(ours['masks'], ours['boxes'], tuple(image.shape[-2:]), None)
        for index, partner in pairs:
            decided = pasted[index] >= mask_threshold
            different = decided != instances.masks[partner].numpy()
            if different.any():
                distance = float(np.abs(pasted[index][different] - mask_threshold).max())
                proof.mask = max(proof.mask, distance)
                if distance > MASK_TOLERANCE:
                    raise UserError(
                        f"a mask differs from the toolkit's by {distance:.1e} at least, at most {MASK_TOLERANCE:.0e} "
                        'was wanted: this model cannot be exported whole'
                    )


def _compare(
    found: dict[str, np.ndarray],
    wanted: dict[str, np.ndarray],
    threshold: float,
    limit: int,
    proof: Proof,
    one: str,
    other: str,
) -> list[tuple[int, int]]:
    """Match the detections of one image, and add the differences to ``proof``.

    Returns:
        Pairs of indices into ``found`` and ``wanted``.
    """
    pairs = match(found, wanted)
    proof.detections = (proof.detections or 0) + max(len(found['scores']), len(wanted['scores']))
    for index, partner in pairs:
        proof.box = max(proof.box, float(np.abs(found['boxes'][index] - wanted['boxes'][partner]).max()))
        proof.score = max(proof.score, float(abs(found['scores'][index] - wanted['scores'][partner])))
        if 'masks' in found and 'masks' in wanted:
            difference = float(np.abs(found['masks'][index] - wanted['masks'][partner]).max())
            proof.mask = max(proof.mask, difference)
            if not difference <= MASK_TOLERANCE:
                raise UserError(
                    f'a mask of {one} differs from {other} by {difference:.1e}, at most {MASK_TOLERANCE:.0e} was '
                    'wanted: this model cannot be exported whole'
                )
    for left, right, place in ((found, wanted, 0), (wanted, found, 1)):
        matched = {pair[place] for pair in pairs}
        for index in range(len(left['scores'])):
            if index in matched:
                continue
            if not _is_tie(left, index, right, threshold, limit):
                raise UserError(
                    f'{one if place == 0 else other} finds class {left["labels"][index]} at '
                    f'{np.round(left["boxes"][index], 2).tolist()} with score {left["scores"][index]:.5f}, which '
                    f'{other if place == 0 else one} does not find: this model cannot be exported whole'
                )
            proof.ties += 1
    return pairs


def match(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> list[tuple[int, int]]:
    """Return pairs of equal detections, each at most once: same label, box and score within the tolerances."""
    pairs = []
    free = np.ones(len(wanted['scores']), bool)
    for index in range(len(found['scores'])):
        near = free & (found['labels'][index] == wanted['labels'])
        near &= np.abs(found['scores'][index] - wanted['scores']) <= SCORE_TOLERANCE
        distance = np.abs(found['boxes'][index] - wanted['boxes']).max(axis=1, initial=0)
        near &= distance <= BOX_TOLERANCE
        if near.any():
            partner = int(np.argmin(np.where(near, distance, np.inf)))
            free[partner] = False
            pairs.append((index, partner))
    return pairs


def _is_tie(
    left: dict[str, np.ndarray], index: int, right: dict[str, np.ndarray], threshold: float, limit: int
) -> bool:
    """True if two equal scores explain that a detection of ``left`` is missing in ``right``.

    Its score is equal to the threshold, to the last one of the ``limit`` that fit in, or to that of an overlapping box
    of its class: which of two equal ones is taken is chance.
    """
    score = left['scores'][index]
    if abs(score - threshold) <= TIE_TOLERANCE:
        return True
    if len(right['scores']) >= limit and abs(score - right['scores'].min()) <= TIE_TOLERANCE:
        return True
    same = (right['labels'] == left['labels'][index]) & (np.abs(right['scores'] - score) <= TIE_TOLERANCE)
    return bool((_iou(left['boxes'][index], right['boxes'][same]) > 0.3).any())


def _iou(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    top_left = np.maximum(box[:2], boxes[:, :2])
    bottom_right = np.minimum(box[2:], boxes[:, 2:])
    shared = np.clip(bottom_right - top_left, 0, None).prod(1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    return shared / np.maximum((box[2:] - box[:2]).prod() + areas - shared, 1e-9)


@contextlib.contextmanager
def _score_threshold(model: Any, whole: Any, threshold: float) -> Iterator[None]:
    """Set the score threshold of both models."""
    parts = [model.test_cfg] if 'score_thr' in model.test_cfg else [model.test_cfg['rcnn'], model.roi_head.test_cfg]
    parts += [model.bbox_head.test_cfg] if hasattr(model, 'bbox_head') else []
    before = [part['score_thr'] for part in parts]
    own = whole.score_threshold.clone()
    try:
        for part in parts:
            part['score_thr'] = threshold
        whole.score_threshold.fill_(threshold)
        yield
    finally:
        for part, value in zip(parts, before, strict=True):
            part['score_thr'] = value
        whole.score_threshold.copy_(own)


# Segmentors


@torch.no_grad()
def _prove_segmentor(model: Any, whole: WholeModel, session: Session, images: list[Any], shapes: Any) -> Proof:
    proof = Proof(shapes, label=1.0)
    mode = model.test_cfg.get('mode', 'whole')
    model.test_cfg['mode'] = 'whole'  # windows are the runner's
    try:
        for image in images:
            wanted = _as_numpy(whole(image))
            found = _run(session, image, whole.output_names)
            _check_finite(found)
            theirs = toolkit_samples(model, image)
            labels = np.stack([sample.pred_sem_seg.data[0].numpy() for sample in theirs])
            if model.decode_head.out_channels == 1:
                logits = wanted['logits']  # the toolkit keeps probabilities only
            else:
                logits = np.stack([sample.seg_logits.data.numpy() for sample in theirs])
            _compare_maps(wanted, dict(labels=labels, logits=logits), proof, 'the module', "the toolkit's model")
            _compare_maps(found, wanted, proof, 'the file', 'the module')
    finally:
        model.test_cfg['mode'] = mode
    return proof


def _compare_maps(
    found: dict[str, np.ndarray], wanted: dict[str, np.ndarray], proof: Proof, one: str, other: str
) -> None:
    scale = float(np.abs(wanted['logits']).max())
    difference = float(np.abs(found['logits'] - wanted['logits']).max()) / max(scale, 1e-6)
    agreement = float((found['labels'] == wanted['labels']).mean())
    if len(np.unique(wanted['labels'])) < 2:  # one class only: compare what is left without the class's mean
        centre = wanted['logits'].mean((0, 2, 3), keepdims=True)
        decided = ((values['logits'] - centre) for values in (found, wanted))
        one_channel = centre.shape[1] == 1
        first, second = ((values > 0) if one_channel else values.argmax(1) for values in decided)
        agreement = min(agreement, float((first == second).mean()))
    proof.label = min(1.0 if proof.label is None else proof.label, agreement)
    if not (agreement >= LABEL_AGREEMENT and difference <= LOGIT_TOLERANCE):
        raise UserError(
            f'{agreement:.4%} of the labels of {one} equal {other} (at least {LABEL_AGREEMENT:.2%} were wanted) and '
            f'logits differ by {difference:.1e} of the largest (at most {LOGIT_TOLERANCE:.0e}): this model cannot be '
            'exported whole'
        )


# Both


def toolkit_samples(model: Any, image: Any) -> list[Any]:
    """Return the data samples of the toolkit's own ``test_step`` for RGB images (N, 3, H, W), 0 to 255."""
    bgr = image.flip(1).to(torch.uint8)
    height, width = image.shape[-2:]
    meta = dict(ori_shape=(height, width), img_shape=(height, width), scale_factor=(1.0, 1.0))
    if hasattr(model, 'decode_head'):
        from mmseg.structures import SegDataSample as Sample
    else:
        from mmdet.structures import DetDataSample as Sample
    samples = [Sample(metainfo=dict(meta)) for _ in range(len(image))]
    return model.test_step(dict(inputs=list(bgr), data_samples=samples))


def _as_numpy(outputs: Any) -> dict[str, np.ndarray]:
    names = ('labels', 'logits') if len(outputs) == 2 else ('boxes', 'scores', 'labels', 'masks')
    return {name: value.numpy() for name, value in zip(names, outputs)}


def _run(session: Session, image: Any, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    try:
        return dict(zip(names, session.run(image.numpy(), list(names)), strict=True))
    except Exception as error:  # each runtime has its own
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        size = 'x'.join(map(str, image.shape))
        raise UserError(
            f'the file fails on an image of {size} ({reason}): export it with --size, or export --part neck'
        ) from error


def _by_image(outputs: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Return the detections of each image without the empty places."""
    images = []
    for i in range(len(outputs['labels'])):
        there = outputs['labels'][i] >= 0
        images.append({name: value[i][there] for name, value in outputs.items()})
    return images


def _check_finite(outputs: dict[str, np.ndarray]) -> None:
    for name, value in outputs.items():
        if not np.isfinite(value).all():
            raise UserError(f'the output {name} of the file is not finite: this model cannot be exported whole')


def _names(model: Any) -> list[str]:
    return list(model.dataset_meta['classes'])
