"""Run exported models without torch, mmengine or a toolkit: ``Model('model.onnx')(images)``.

Needs NumPy, onnxruntime or openvino, and OpenCV or Pillow: ``pip install 'convnext-dense[runtime]'``. Command line:
``python -m convnext_dense.runtime MODEL IMAGE_OR_FOLDER... --out FOLDER``.
"""

from convnext_dense.results import Detections, LabelMap, PredictionFolder
from convnext_dense.runtime.model import Model

__all__ = ['Detections', 'LabelMap', 'Model', 'PredictionFolder']
