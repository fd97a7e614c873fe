"""From a config and a checkpoint to a proved file: what ``tools/export.py`` does for whole models."""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path

from mmengine.config import Config

from convnext_dense.engine.trained_model import load_model
from convnext_dense.errors import UserError
from convnext_dense.export.describe import metadata_of
from convnext_dense.export.files import INSTALL, check_exporter, with_score_threshold, write_onnx, write_openvino
from convnext_dense.export.proof import SHAPES, prove
from convnext_dense.export.whole import whole_model
from convnext_dense.outputs import whole_files
from convnext_dense.runtime.sessions import ONNXRuntimeSession, OpenVINOSession, Session


def export_model(cfg: Config, checkpoint: str, path: Path, size: tuple[int, int] | None = None) -> str:
    """Write a whole model, prove that it computes what the toolkit computes, and return a line about it.

    Args:
        cfg: Of mmdet or mmseg.
        checkpoint: Of the whole model.
        path: Ends in ``.onnx``, or in ``.xml`` for OpenVINO IR.
        size: Fix height and width, in pixels; None leaves them free.

    Raises:
        UserError: The model cannot be exported, the file cannot be written, or it differs; then ``path`` is as it was.
    """
    check_exporter()
    runtime = 'openvino' if path.suffix == '.xml' else 'onnxruntime'
    if importlib.util.find_spec(runtime) is None:
        raise UserError(f'a whole model is proved in {runtime}, which is not installed: {INSTALL}, or install it')
    model = load_model(cfg, checkpoint)
    whole = whole_model(model)
    metadata = metadata_of(model, whole, cfg, checkpoint, size)
    shapes = SHAPES if size is None else ((1, *size), (2, *size))
    with tempfile.TemporaryDirectory() as folder, whole_files(path) as written:
        graph = written if path.suffix == '.onnx' else Path(folder) / 'model.onnx'
        write_onnx(whole, graph, metadata, size)

        def open_file(threshold: float | None) -> Session:
            """Open the written file; with another score threshold in it, the graph that it was made from."""
            model = graph if threshold is None else with_score_threshold(graph, threshold)
            if path.suffix == '.onnx':
                return ONNXRuntimeSession(model)
            return OpenVINOSession(written if threshold is None else model)

        if path.suffix == '.xml':
            write_openvino(graph, written, metadata)
        try:
            proof = prove(model, whole, open_file, shapes)
        except UserError as error:
            if size is not None or not str(error).endswith('cannot be exported whole'):
                raise
            raise UserError(
                f'{error} with a free height and width. A part of it may hold the size that it was recorded with: try '
                '--size HEIGHTxWIDTH'
            ) from error
    sizes = f'height {size[0]} and width {size[1]}' if size else 'any height and width'
    name = 'OpenVINO' if path.suffix == '.xml' else 'ONNX Runtime'
    weights = path.with_suffix('.bin') if path.suffix == '.xml' else path
    return (
        f'{path}: whole {type(model).__name__}, {weights.stat().st_size / 2**20:.1f} MiB, {sizes}, proved in {name}: '
        f'{proof}'
    )
