"""Exported files for tests, without the export."""

import json
from pathlib import Path

import numpy as np

from convnext_dense.runtime.metadata import KEY

DETECTION = dict(
    format=1,
    task='detection',
    names=['cat', 'dog'],
    palette=[],
    resize=dict(scale=[32, 32], keep_ratio=True),
    size=None,
    mean=None,
    std=None,
    score_threshold=0.05,
    mask_threshold=0.5,
)


def write_small_file(path: Path) -> None:
    """Write an ONNX file that finds one dog in the left half of every image of 16 x 16 pixels."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    constants = dict(
        boxes=np.float32([[[0, 0, 8, 16]]]), scores=np.float32([[0.75]]), labels=np.int32([[1]]),
        masks=np.ones((1, 1, 4, 4), np.float32),
    )  # fmt: skip
    nodes = [
        helper.make_node('Constant', [], [name], value=numpy_helper.from_array(value))
        for name, value in constants.items()
    ]
    image = helper.make_tensor_value_info('image', TensorProto.FLOAT, ['batch', 3, 'height', 'width'])
    kinds = {np.dtype('float32'): TensorProto.FLOAT, np.dtype('int32'): TensorProto.INT32}
    outputs = [
        helper.make_tensor_value_info(name, kinds[value.dtype], value.shape) for name, value in constants.items()
    ]
    model = helper.make_model(
        helper.make_graph(nodes, 'small', [image], outputs), opset_imports=[helper.make_opsetid('', 18)], ir_version=10
    )
    helper.set_model_props(model, {KEY: json.dumps({**DETECTION, 'resize': None})})
    onnx.save(model, str(path))
