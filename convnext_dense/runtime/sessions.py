"""A file in ONNX Runtime or OpenVINO: an image in, named arrays out."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from convnext_dense.errors import UserError
from convnext_dense.runtime.metadata import KEY

RUNTIMES = ('onnxruntime', 'openvino')


class Session(Protocol):
    """A loaded file."""

    metadata: str | None

    def run(self, image: np.ndarray, names: list[str]) -> list[np.ndarray]:
        """Return the outputs ``names`` for an image (N, 3, H, W) float32."""


def open_session(path: Path, runtime: str | None = None, threads: int | None = None, bf16: bool = False) -> Session:
    """Load a file.

    Args:
        path: An ``.onnx`` file, or an ``.xml`` file of OpenVINO.
        runtime: ``'onnxruntime'`` or ``'openvino'``; None takes the first that is installed and reads the file.
        threads: Number of threads; None leaves it to the runtime.
        bf16: Let OpenVINO compute in bfloat16 where the processor can.

    Raises:
        UserError: There is no such file or runtime, or they do not go together.
    """
    if not path.is_file():
        raise UserError(f'there is no model file {path}: check the path')
    if path.suffix not in ('.onnx', '.xml'):
        raise UserError(f'a model file ends in .onnx or .xml, found {path}: give such a file')
    if path.suffix == '.xml' and runtime == 'onnxruntime':
        raise UserError(f'ONNX Runtime does not read {path}: take the .onnx file, or --runtime openvino')
    wanted = [runtime] if runtime else ['openvino'] if path.suffix == '.xml' or bf16 else list(RUNTIMES)
    installed = [name for name in wanted if importlib.util.find_spec(name) is not None]
    if not installed:
        raise UserError(f'{path} needs {" or ".join(wanted)}, which is not installed: pip install {wanted[0]}')
    if installed[0] == 'openvino':
        return OpenVINOSession(path, threads, bf16)
    if bf16:
        raise UserError('bf16 is a hint of OpenVINO: take --runtime openvino, or leave it out')
    return ONNXRuntimeSession(path, threads)


class ONNXRuntimeSession:
    """An ``.onnx`` file in ONNX Runtime; a path, or the content of a file."""

    def __init__(self, model: Path | bytes, threads: int | None = None) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        if threads:
            options.intra_op_num_threads = threads
        source = model if isinstance(model, bytes) else str(model)
        self.session = onnxruntime.InferenceSession(source, options, providers=onnxruntime.get_available_providers())
        self.metadata: str | None = self.session.get_modelmeta().custom_metadata_map.get(KEY)

    def run(self, image: np.ndarray, names: list[str]) -> list[np.ndarray]:
        return self.session.run(names, {'image': image})


class OpenVINOSession:
    """An ``.onnx`` or ``.xml`` file in OpenVINO; a path, or the content of an ``.onnx`` file."""

    def __init__(self, model: Path | bytes, threads: int | None = None, bf16: bool = False) -> None:
        import openvino

        core = openvino.Core()
        read = core.read_model(model if isinstance(model, bytes) else str(model))
        self.metadata: str | None = _openvino_metadata(read)
        config: dict[str, Any] = {'INFERENCE_PRECISION_HINT': 'bf16' if bf16 else 'f32'}
        if threads:
            config['INFERENCE_NUM_THREADS'] = threads
        self.request = core.compile_model(read, 'CPU', config).create_infer_request()

    def run(self, image: np.ndarray, names: list[str]) -> list[np.ndarray]:
        self.request.infer({'image': image})
        return [np.array(self.request.get_tensor(name).data) for name in names]


def computes_bf16() -> bool:
    """Return whether OpenVINO computes in bfloat16 on this processor."""
    import openvino

    return 'BF16' in openvino.Core().get_property('CPU', 'OPTIMIZATION_CAPABILITIES')


def _openvino_metadata(model: Any) -> str | None:
    for path in ([KEY], ['framework', KEY], ['model_info', KEY]):
        if model.has_rt_info(path):
            return str(model.get_rt_info(path).astype(str))
    return None
