"""Proof that an exported file computes what the toolkit computes.

Three steps on the same images: the toolkit's own ``test_step``, the module that was exported, the file in the runtime.
Detections are matched by label, box and score. One without a partner counts as a tie only if rounding explains it: its
score equals that of its rival, or the module itself decides otherwise once the image is changed by
:data:`ROUNDING` of a gray level. A suppression or a choice of the best inside the model can hang on that little.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
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
ROUNDING = 1e-3  # gray levels of 255: some times the rounding of fp32
NEIGHBOURS = 16  # images changed so, to find out what hangs on rounding
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
            expected = [_outputs(whole, image) for image in images]
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
            rule = _TieRule(threshold, limit)
            for image, wanted in zip(images, expected, strict=True):
                neighbours = _Neighbours(whole, image)
                _compare_with_toolkit(model, image, wanted, neighbours, rule, proof)
                found = _run(session, image, whole.output_names)
                _check_finite(found)
                for i, (one, other) in enumerate(zip(_by_image(found), _by_image(wanted), strict=True)):
                    _compare(other, one, neighbours.of(i), rule, proof, 'the file')
        break
    allowed = max(1, int(MAX_TIES * (proof.detections or 0)))
    if proof.ties > allowed:
        raise UserError(
            f'{proof.ties} of {proof.detections} detections are ties that the file decides otherwise, at most '
            f'{allowed} were wanted: export a trained model'
        )
    return proof


class _Neighbours:
    """What the module finds in images that differ from a batch by rounding; computed when it is asked for."""

    def __init__(self, whole: Any, image: Any) -> None:
        self.whole = whole
        self.image = image
        self.found: list[list[dict[str, np.ndarray]]] = []  # by neighbour and image

    def of(self, index: int) -> Callable[[], list[dict[str, np.ndarray]]]:
        """Return a function that returns the detections in the neighbours of one image of the batch."""

        def detections() -> list[dict[str, np.ndarray]]:
            if not self.found:
                generator = torch.Generator().manual_seed(0)
                for _ in range(NEIGHBOURS):
                    noise = torch.empty(self.image.shape).uniform_(-ROUNDING, ROUNDING, generator=generator)
                    self.found.append(_by_image(_as_numpy(self.whole(self.image + noise))))
            return [images[index] for images in self.found]

        return detections


def _compare_with_toolkit(
    model: Any, image: Any, wanted: dict[str, np.ndarray], neighbours: _Neighbours, rule: _TieRule, proof: Proof
) -> None:
    """Compare the module's outputs with the toolkit's for one batch; masks as pixels of the image."""
    mask_threshold = None
    if 'masks' in wanted:
        mask_threshold = float(model.test_cfg['rcnn']['mask_thr_binary'])
    samples = toolkit_samples(model, image)
    for number, (sample, ours) in enumerate(zip(samples, _by_image(wanted), strict=True)):
        instances = sample.pred_instances
        theirs = dict(boxes=instances.bboxes.numpy(), scores=instances.scores.numpy(), labels=instances.labels.numpy())
        pairs = _compare(ours, theirs, neighbours.of(number), rule, proof, "the toolkit's model")
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
    ours: dict[str, np.ndarray],
    theirs: dict[str, np.ndarray],
    neighbours: Callable[[], list[dict[str, np.ndarray]]],
    rule: _TieRule,
    proof: Proof,
    other: str,
) -> list[tuple[int, int]]:
    """Match the detections of the module and of ``other`` in one image, and add the differences to ``proof``.

    Args:
        ours: The module's detections.
        theirs: The detections of the file or of the toolkit's model.
        neighbours: Returns the module's detections in images that differ by rounding.
        rule: What counts as a tie.
        proof: Is updated.
        other: The name of what ``theirs`` comes from.

    Returns:
        Pairs of indices into ``ours`` and ``theirs``.

    Raises:
        UserError: A detection has no partner and is no tie, or a mask differs.
    """
    pairs = match(ours, theirs)
    proof.detections = (proof.detections or 0) + max(len(ours['scores']), len(theirs['scores']))
    for index, partner in pairs:
        proof.box = max(proof.box, float(np.abs(ours['boxes'][index] - theirs['boxes'][partner]).max()))
        proof.score = max(proof.score, float(abs(ours['scores'][index] - theirs['scores'][partner])))
        if 'masks' in ours and 'masks' in theirs:
            difference = float(np.abs(ours['masks'][index] - theirs['masks'][partner]).max())
            proof.mask = max(proof.mask, difference)
            if not difference <= MASK_TOLERANCE:
                raise UserError(
                    f'a mask of {other} differs from the module by {difference:.1e}, at most {MASK_TOLERANCE:.0e} was '
                    'wanted: this model cannot be exported whole'
                )
    lost = sorted(set(range(len(ours['scores']))) - {pair[0] for pair in pairs})
    gained = sorted(set(range(len(theirs['scores']))) - {pair[1] for pair in pairs})
    for index in lost:
        hangs_on_rounding = rule.explains(ours, index, theirs) or any(
            not match(_one(ours, index), found) for found in neighbours()
        )
        if not hangs_on_rounding:
            raise UserError(
                f'the module finds {_describe(ours, index)}, which {other} does not find: this model cannot be '
                'exported whole'
            )
        proof.ties += 1
    for index in gained:
        hangs_on_rounding = rule.explains(theirs, index, ours) or any(
            match(_one(theirs, index), found) for found in neighbours()
        )
        if not hangs_on_rounding:
            raise UserError(
                f'{other} finds {_describe(theirs, index)}, which the module does not find: this model cannot be '
                'exported whole'
            )
        proof.ties += 1
    return pairs


def _one(detections: dict[str, np.ndarray], index: int) -> dict[str, np.ndarray]:
    return {name: detections[name][index : index + 1] for name in ('boxes', 'scores', 'labels')}


def _describe(detections: dict[str, np.ndarray], index: int) -> str:
    box = np.round(detections['boxes'][index], 2).tolist()
    return f'class {detections["labels"][index]} at {box} with score {detections["scores"][index]:.5f}'


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


@dataclass(frozen=True)
class _TieRule:
    """Equal scores that explain a missing detection: which of two equal ones is taken is chance.

    Attributes:
        threshold: The score threshold.
        limit: Of the number of detections.
    """

    threshold: float
    limit: int

    def explains(self, left: dict[str, np.ndarray], index: int, right: dict[str, np.ndarray]) -> bool:
        """Return True if equal scores explain that a detection of ``left`` is missing in ``right``.

        Its score is equal to the threshold, to the last one of those that fit in, or to that of an overlapping box of
        its class.
        """
        score = left['scores'][index]
        if abs(score - self.threshold) <= TIE_TOLERANCE:
            return True
        if len(right['scores']) >= self.limit and abs(score - right['scores'].min()) <= TIE_TOLERANCE:
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
            wanted = _outputs(whole, image)
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


def _outputs(whole: WholeModel, image: Any) -> dict[str, np.ndarray]:
    """Return the outputs of the module for a batch.

    Raises:
        UserError: The model does not take images of this size.
    """
    try:
        return _as_numpy(whole(image))
    except Exception as error:  # each model has its own
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f'the model fails on an image of {image.shape[-2]}x{image.shape[-1]} ({reason}): give a size that it takes '
            'by --size HEIGHTxWIDTH'
        ) from error


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
