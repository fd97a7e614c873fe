"""Whole models of every family: the module over the toolkit's parts, and the exported file."""

from __future__ import annotations

import copy
import importlib.util

import pytest
import tiny_models

pytest.importorskip('mmdet', reason='needs mmdet')
pytest.importorskip('mmseg', reason='needs mmsegmentation')
pytest.importorskip('torchvision', reason='needs torchvision')

import numpy as np  # noqa: E402
import torch  # noqa: E402
from mmseg.models.utils import Upsample  # noqa: E402

from convnext_dense import UserError  # noqa: E402
from convnext_dense.export import prove, whole_model  # noqa: E402
from convnext_dense.export.files import FREE, record, with_score_threshold, write_onnx  # noqa: E402
from convnext_dense.export.proof import SHAPES  # noqa: E402
from convnext_dense.export.segmentor import free_of_sizes  # noqa: E402
from convnext_dense.runtime.sessions import ONNXRuntimeSession, OpenVINOSession  # noqa: E402

needs_exporter = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ('onnx', 'onnxscript', 'onnxruntime'))),
    reason="needs onnx, onnxscript and onnxruntime: pip install 'convnext-dense[export]'",
)
DETECTORS = [*tiny_models.DETECTORS, *tiny_models.DENSE_HEADS]
SEGMENTORS = list(tiny_models.SEGMENTORS)


class ModuleAsFile:
    """A module in the place of an exported file."""

    metadata = None

    def __init__(self, whole):
        self.whole = whole

    def run(self, image, names):
        outputs = self.whole(torch.from_numpy(image))
        return [outputs[self.whole.output_names.index(name)].numpy() for name in names]


def open_module(whole):
    """What ``prove`` calls to open a file, without a file: the threshold is in the module already."""
    return lambda threshold: ModuleAsFile(whole)


@pytest.mark.parametrize('name', DETECTORS + SEGMENTORS)
def test_module_equals_the_toolkit(name):
    model = tiny_models.build(tiny_models.model_config(name))
    whole = whole_model(model)
    proof = prove(model, whole, open_module(whole))
    if whole.task == 'segmentation':
        assert proof.label >= 0.9999
    else:
        assert proof.detections >= 2 * 4 * 10, 'both comparisons, four images'
        assert proof.box <= 0.01 and proof.score <= 1e-5 and proof.ties <= 1
        assert ('masks' in whole.output_names) == ('Mask' in name)


def exported_equals(name, tmp_path):
    """Export a tiny model, and prove the file in every runtime that is installed."""
    model = tiny_models.build(tiny_models.model_config(name))
    whole = whole_model(model)
    path = tmp_path / 'model.onnx'
    write_onnx(whole, path, dict(format=1))
    for session in sessions:

        def open_file(threshold, session=session):
            return session(path if threshold is None else with_score_threshold(path, threshold))

        assert prove(model, whole, open_file).shapes == SHAPES


sessions = [ONNXRuntimeSession]
if importlib.util.find_spec('openvino') is not None:
    sessions.append(OpenVINOSession)
# A segmentor, a single-stage and a two-stage detector.
ONE_OF_EACH = ('Semantic FPN', 'RetinaNet', 'Cascade Mask R-CNN')


@needs_exporter
@pytest.mark.parametrize('name', ONE_OF_EACH)
def test_file_equals_the_toolkit(name, tmp_path):
    exported_equals(name, tmp_path)


@needs_exporter
@pytest.mark.export
@pytest.mark.parametrize('name', [name for name in DETECTORS + SEGMENTORS if name not in ONE_OF_EACH])
def test_every_file_equals_the_toolkit(name, tmp_path):
    exported_equals(name, tmp_path)


@needs_exporter
@pytest.mark.parametrize(
    'part',
    [
        *(torch.nn.AdaptiveAvgPool2d(bins) for bins in (1, 3, (2, 6))),
        *(Upsample(scale_factor=factor, mode='bilinear', align_corners=False) for factor in (2, 4, 1.5)),
        Upsample(scale_factor=2, mode='bilinear', align_corners=True),
        Upsample(scale_factor=2),
    ],
    ids=lambda part: f'{type(part).__name__}-{getattr(part, "output_size", None) or part.scale_factor}',
)
def test_no_part_keeps_the_size_of_the_example(part):
    inner = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), part)
    free = free_of_sizes(inner)
    assert free[0].weight is inner[0].weight and inner[1] is part, 'shared, and the given one is left alone'
    proto = record(free, (torch.zeros(2, 3, 10, 14),), ({0: FREE, 2: FREE, 3: FREE},), ('image',), ('out',))
    session = ONNXRuntimeSession(proto.SerializeToString())
    for size in ((10, 14), (7, 12), (31, 5)):
        image = torch.rand(1, 3, *size)
        (out,) = session.run(image.numpy(), ['out'])
        np.testing.assert_allclose(out, inner(image).detach(), rtol=1e-5, atol=1e-5)


def test_a_different_module_is_refused():
    model = tiny_models.build(tiny_models.model_config('FCN'))
    whole = whole_model(model)
    whole.decode_head = copy.deepcopy(whole.decode_head)  # it is the toolkit's own
    whole.decode_head.conv_seg.bias.data[0] += 1
    with pytest.raises(UserError, match=r"of the labels of the module equal the toolkit's model"):
        prove(model, whole, open_module(whole))


def test_too_few_detections_prove_nothing():
    model = tiny_models.build(tiny_models.model_config('Faster R-CNN'))
    model.roi_head.bbox_head.fc_cls.bias.data[-1] += 1e4  # background everywhere
    whole = whole_model(model)
    with pytest.raises(UserError, match='0 objects of 0 classes .* this proves nothing'):
        prove(model, whole, open_module(whole))


def test_a_model_without_a_family_is_refused_with_the_reason_of_the_nearest_one():
    model = tiny_models.build(tiny_models.model_config('Faster R-CNN'))
    del model.rpn_head  # a Fast R-CNN, which mmdet builds so too
    with pytest.raises(UserError) as error:
        whole_model(model)
    assert str(error.value) == (
        'a whole FasterRCNN cannot be exported (TwoStageDetector: it has no RPN, its proposals come with the data): '
        'export --part backbone or --part neck instead'
    )


@pytest.mark.parametrize('name, heads', [('RetinaNet', 'bbox_head'), ('Faster R-CNN', 'rpn_head roi_head.bbox_head')])
def test_coders_that_clip_in_another_way_are_refused(name, heads):
    from mmdet.models.task_modules import LegacyDeltaXYWHBBoxCoder

    for head in heads.split():
        model = tiny_models.build(tiny_models.model_config(name))
        model.get_submodule(head).bbox_coder = LegacyDeltaXYWHBBoxCoder()
        with pytest.raises(UserError, match='LegacyDeltaXYWHBBoxCoder clips boxes in a way of its own'):
            whole_model(model)


def test_a_size_that_the_model_does_not_take_is_named():
    model = tiny_models.build(tiny_models.model_config('FCN'))
    whole = whole_model(model)

    def refuse_odd_sizes(backbone, inputs):
        assert inputs[0].shape[-1] % 2 == 0, 'odd width'

    model.backbone.register_forward_pre_hook(refuse_odd_sizes)
    with pytest.raises(UserError) as error:
        prove(model, whole, open_module(whole), ((1, 64, 64), (1, 64, 65)))
    assert str(error.value) == (
        'the model fails on an image of 64x65 (odd width): give a size that it takes by --size HEIGHTxWIDTH'
    )
