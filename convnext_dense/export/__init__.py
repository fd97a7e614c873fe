"""Trained models as ONNX graphs and OpenVINO IR: backbones, backbones with their neck, and whole models.

``features`` exports the first two. A whole model is a plain ``nn.Module`` over the toolkit's own parts, with everything
from the raw image to the result inside; :mod:`convnext_dense.export.whole` finds its family.
"""

from convnext_dense.export import families  # noqa: F401  registers them
from convnext_dense.export.evaluate import evaluate, of_checkpoint, of_file
from convnext_dense.export.features import (
    CHECKED_SHAPES,
    INSTALL,
    Features,
    check_onnx,
    export_onnx,
    load_features,
)
from convnext_dense.export.files import write_onnx, write_openvino
from convnext_dense.export.model import export_model
from convnext_dense.export.proof import prove
from convnext_dense.export.whole import FAMILIES, WholeModel, whole_model

__all__ = [
    'CHECKED_SHAPES',
    'FAMILIES',
    'INSTALL',
    'Features',
    'WholeModel',
    'check_onnx',
    'evaluate',
    'export_model',
    'export_onnx',
    'load_features',
    'of_checkpoint',
    'of_file',
    'prove',
    'whole_model',
    'write_onnx',
    'write_openvino',
]
