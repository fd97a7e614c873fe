"""The proof of an export: it passes what rounds otherwise and refuses what computes something else."""

from __future__ import annotations

import copy

import pytest
import tiny_models

pytest.importorskip('mmdet', reason='needs mmdet')
pytest.importorskip('torchvision', reason='needs torchvision')

import torch  # noqa: E402

from convnext_dense import UserError  # noqa: E402
from convnext_dense.export import prove, whole_model  # noqa: E402

DETECTORS = [*tiny_models.DETECTORS, *tiny_models.DENSE_HEADS]


class OtherModule:
    """A module in the place of the exported file."""

    metadata = None

    def __init__(self, whole, noise=0.0, seed=0):
        self.whole = whole
        self.noise = noise
        self.generator = torch.Generator().manual_seed(seed)

    def run(self, image, names):
        image = torch.from_numpy(image)
        image = image + torch.empty(image.shape).uniform_(-self.noise, self.noise, generator=self.generator)
        outputs = self.whole(image)
        return [outputs[self.whole.output_names.index(name)].numpy() for name in names]


@pytest.fixture(scope='module')
def models():
    """Each family once, with its module."""
    built = {}

    def get(name):
        if name not in built:
            model = tiny_models.build(tiny_models.model_config(name))
            built[name] = (model, whole_model(model))
        return built[name]

    return get


@pytest.mark.parametrize('name', DETECTORS)
def test_other_rounding_passes(name, models):
    """Rounding of fp32 differs between processors and runtimes; here it is noise of 1e-4 gray levels in 3 draws."""
    model, whole = models(name)
    for seed in range(3):
        proof = prove(model, whole, lambda threshold, seed=seed: OtherModule(whole, noise=1e-4, seed=seed))
        assert proof.detections >= 2 * 4 * 10 and proof.ties <= 1


def change_suppression(whole):
    whole.nms_iou = 0.6


def change_proposals(whole):
    whole.rpn.nms_iou = 0.5


def change_candidates(whole):
    whole.rpn.candidates = 20


def change_boxes(whole):
    whole.box_heads[-1].fc_reg.bias.data[::4] += 0.05


def change_scores(whole):
    whole.box_heads[-1].fc_cls.bias.data[0] += 0.01


def change_limit(whole):
    whole.max_detections = 15


def change_masks(whole):
    whole.mask_heads[-1].conv_logits.bias.data += 0.01


def change_mean(whole):
    whole.mean += 0.5


CHANGES = [value for name, value in list(globals().items()) if name.startswith('change_')]


@pytest.mark.parametrize('change', CHANGES, ids=lambda change: change.__name__)
def test_what_computes_something_else_is_refused(change, models):
    model, whole = models('Mask R-CNN')
    other = copy.deepcopy(whole)
    change(other)
    with pytest.raises(UserError, match=r'this model cannot be exported whole|ties that the file decides otherwise'):
        prove(model, whole, lambda threshold: OtherModule(other))
