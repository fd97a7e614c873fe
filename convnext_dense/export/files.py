"""Write a whole model as an ONNX graph with metadata, and the graph as OpenVINO IR."""

from __future__ import annotations

import importlib.util
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from convnext_dense.errors import UserError
from convnext_dense.export.whole import WholeModel
from convnext_dense.runtime.metadata import KEY

INSTALL = "pip install 'convnext-dense[export]'"
EXAMPLE_SIZE = (2, 96, 160)  # batch, height, width while the graph is recorded; no size of a batch or image is kept


def check_exporter() -> None:
    """Check that what the exporter needs is installed.

    Raises:
        UserError: torch is too old, or a package is missing.
    """
    if torch.__version__ < (2, 6):
        raise UserError(f'the export to ONNX needs torch 2.6 or newer, found {torch.__version__}: update torch')
    for package in ('onnx', 'onnxscript'):
        if importlib.util.find_spec(package) is None:
            raise UserError(f'the export to ONNX needs {package}, which is not installed: {INSTALL}')


def write_onnx(model: WholeModel, path: Path, metadata: dict[str, Any], size: tuple[int, int] | None = None) -> None:
    """Write ``model`` as an ONNX graph of any batch, height and width.

    Args:
        model: From :func:`~convnext_dense.export.whole.whole_model`.
        path: The file to write.
        metadata: JSON values for the runner, see :mod:`convnext_dense.runtime.metadata`.
        size: Fix height and width, in pixels; None leaves them free.

    Raises:
        UserError: Something that the exporter needs is not installed, or the graph cannot have free sizes.
    """
    check_exporter()
    batch, height, width = EXAMPLE_SIZE
    if size is not None:
        height, width = size
    free_dimensions = (0,) if size is not None else (0, 2, 3)
    example = torch.zeros(batch, 3, height, width)
    try:
        program = record(model, example, free_dimensions, model.output_names)
    except UserError:
        raise
    except Exception as error:  # the exporter raises what the traced code and its own passes raise
        if size is not None:
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f'this model cannot be exported with a free height and width ({reason}): give --size HEIGHTxWIDTH'
        ) from error
    program.model.metadata_props[KEY] = json.dumps(metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    program.save(str(path))


def record(model: nn.Module, example: torch.Tensor, free_dimensions: tuple[int, ...], names: tuple[str, ...]) -> Any:
    """Return the ``torch.onnx.ONNXProgram`` of ``model`` with an input ``image`` and outputs of ``names``."""
    free = dict.fromkeys(free_dimensions, torch.export.Dim.DYNAMIC)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter('ignore')  # of torch's, about its own parts
        program = torch.onnx.export(
            model,
            (example,),
            dynamo=True,
            dynamic_shapes=(free,),
            verbose=False,
            input_names=['image'],
            output_names=list(names),
        )
    if program is None:
        raise UserError('torch.onnx.export returned nothing: update torch')
    return program


def write_openvino(onnx_path: Path, path: Path, metadata: dict[str, Any]) -> None:
    """Convert an ONNX graph of this package to OpenVINO IR: ``path`` (.xml) and the weights beside it (.bin).

    Weights stay in fp32; the runner may ask OpenVINO to compute in bf16.

    Raises:
        UserError: OpenVINO is not installed.
    """
    if importlib.util.find_spec('openvino') is None:
        raise UserError('an .xml file needs openvino, which is not installed: pip install openvino')
    import openvino

    converted = openvino.convert_model(str(onnx_path))
    converted.set_rt_info(json.dumps(metadata), [KEY])
    path.parent.mkdir(parents=True, exist_ok=True)
    openvino.save_model(converted, str(path), compress_to_fp16=False)
