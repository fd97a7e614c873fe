"""Write a whole model as an ONNX graph with metadata, and the graph as OpenVINO IR."""

from __future__ import annotations

import importlib.util
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from convnext_dense.errors import UserError
from convnext_dense.export.boxes import image_limit
from convnext_dense.export.whole import WholeModel
from convnext_dense.runtime.metadata import KEY

INSTALL = "pip install 'convnext-dense[export]'"
FREE = torch.export.Dim.DYNAMIC
EXAMPLE_SIZE = (
    2,
    320,
    416,
)  # batch, height, width while the graph is recorded: no level has a side of 1, which is kept


def check_exporter() -> None:
    """Check that what the exporter needs is installed.

    Raises:
        UserError: torch is too old, or a package is missing.
    """
    if torch.__version__ < '2.6':  # a TorchVersion: compared as a version
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
    try:
        if size is not None:
            batch = EXAMPLE_SIZE[0]
            proto = record(model, (torch.zeros(batch, 3, *size),), ({0: FREE},), ('image',), model.output_names)
        elif model.task == 'detection' and model.divisor > 1:
            proto = record_in_parts(model)
        else:
            proto = record(
                model,
                (torch.zeros(EXAMPLE_SIZE[0], 3, *EXAMPLE_SIZE[1:]),),
                ({0: FREE, 2: FREE, 3: FREE},),
                ('image',),
                model.output_names,
            )
    except UserError:
        raise
    except Exception as error:  # the exporter raises what the traced code and its own passes raise
        if size is not None:
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f'this model cannot be exported with a free height and width ({reason}): give --size HEIGHTxWIDTH'
        ) from error
    import onnx

    onnx.helper.set_model_props(proto, {KEY: json.dumps(metadata)})
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(proto, str(path))


class Preparation(nn.Module):
    """The first part of a detector: from the image to the input of the backbone and the limit of the boxes."""

    def __init__(self, model: WholeModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.model.normalised(image), image_limit(image)


class Core(nn.Module):
    """The rest of a detector."""

    def __init__(self, model: WholeModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, normalised: torch.Tensor, limit: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.model.core(normalised, limit)


def record_in_parts(model: WholeModel) -> Any:
    """Return the graph of a detector, recorded in two parts and joined.

    Behind the padding, height and width are multiples of the divisor. Told so, the exporter reasons about them several
    times faster than about the rounded sizes of every level.
    """
    import onnx

    batch, height, width = EXAMPLE_SIZE
    image = torch.zeros(batch, 3, height, width)
    prepared = ('normalised', 'limit')
    first = record(Preparation(model), (image,), ({0: FREE, 2: FREE, 3: FREE},), ('image',), prepared)
    rows, columns = (torch.export.Dim(name, min=2, max=4096) for name in ('rows', 'columns'))
    with torch.no_grad():
        example = Preparation(model)(image)
    free = ({0: FREE, 2: model.divisor * rows, 3: model.divisor * columns}, None)
    second = record(Core(model), example, free, prepared, model.output_names)
    joined = onnx.compose.merge_models(
        onnx.compose.add_prefix(first, 'preparation.', rename_inputs=False, rename_outputs=False),
        second,
        io_map=[(name, name) for name in prepared],
    )
    for initializer in joined.graph.initializer:  # of the wrapper
        _rename(joined.graph, initializer, initializer.name.removeprefix('model.'))
    return joined


def _rename(graph: Any, initializer: Any, name: str) -> None:
    for node in graph.node:
        node.input[:] = [name if value == initializer.name else value for value in node.input]
    initializer.name = name


def record(
    model: nn.Module,
    example: tuple[torch.Tensor, ...],
    free: tuple[Any, ...],
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
) -> Any:
    """Return the ``onnx.ModelProto`` of ``model``.

    Args:
        model: What to record.
        example: Its inputs.
        free: Of each input the dimensions that are free, as ``dynamic_shapes`` of ``torch.onnx.export``.
        inputs, outputs: Their names.
    """
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter('ignore')  # of torch's, about its own parts
        program = torch.onnx.export(
            model,
            example,
            dynamo=True,
            dynamic_shapes=free,
            verbose=False,
            input_names=list(inputs),
            output_names=list(outputs),
        )
    if program is None:
        raise UserError('torch.onnx.export returned nothing: update torch')
    return program.model_proto


def with_score_threshold(path: Path, threshold: float) -> bytes:
    """Return the content of an ONNX file of a detector with another score threshold in it."""
    import onnx

    proto = onnx.load(str(path))
    for initializer in proto.graph.initializer:
        if initializer.name == 'score_threshold':
            initializer.CopyFrom(onnx.numpy_helper.from_array(np.float32(threshold), 'score_threshold'))
            return proto.SerializeToString()
    raise UserError(f'{path} has no score_threshold: export a detector')


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
