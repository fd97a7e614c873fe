"""Build backbones, necks and heads of any toolkit and run them at a small size, to see what they give and take.

Nothing else of the swap builds or runs a module. Each is built for one process, without weights, and on the meta device
if it runs there, which computes nothing.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS
from torch import Tensor, nn

from convnext_dense.errors import UserError
from convnext_dense.models.convnext import ConvNeXt
from convnext_dense.swap.config_tree import as_list, custom_imports, nested_dicts, types_of_package
from convnext_dense.swap.formatting import error_summary
from convnext_dense.toolkits import check_toolkit

CLASSIFIERS = ('mmpretrain', 'mmcls')  # packages of which our ConvNeXt replaces theirs

CONVNEXTS = ('mmpretrain.ConvNeXt', 'mmcls.ConvNeXt')

DEVICES = ('meta', 'cpu')  # not everything runs on the first one

IMAGE_SIZE, LARGER_IMAGE_SIZE = 128, 512

BATCH_SIZE = 2

Result = TypeVar('Result')


@dataclass(frozen=True)
class Feature:
    """One feature of a backbone or neck.

    Attributes:
        shape: (N, C, H, W), or (N, C) where it is pooled.
        stride: In pixels of the image; None where it is pooled or no whole number.
    """

    shape: tuple[int, ...]
    stride: int | None

    @property
    def channels(self) -> int:
        return self.shape[1]


@dataclass(frozen=True)
class BackboneRun:
    """What a backbone did with two images.

    Attributes:
        features: Its outputs.
        image_size: Height and width of the images, in pixels.
        parameter_names: Of its parameters.
    """

    features: tuple[Feature, ...]
    image_size: int
    parameter_names: tuple[str, ...]


@dataclass(frozen=True)
class ModuleRun:
    """What a neck or head did with some features.

    Attributes:
        used: Positions of the features on which its outputs depend.
        outputs: What it gave.
    """

    used: tuple[int, ...]
    outputs: tuple[Feature, ...]


def import_models(scope: str, cfg: Config) -> None:
    """Import the toolkit and the modules that the model needs; what is missing shows where it is built.

    Raises:
        UserError: The toolkit cannot be imported.
    """
    check_toolkit(scope)
    for name in custom_imports(cfg):
        package = name.split('.')[0]
        if package in CLASSIFIERS and types_of_package(cfg.model, package) <= set(CONVNEXTS):
            continue
        try:
            importlib.import_module(name)
        except Exception:  # mmpretrain raises a TypeError next to a newer transformers
            continue


def is_our_convnext(backbone: ConfigDict) -> bool:
    """Return whether a config builds our ConvNeXt in the current scope."""
    return MODELS.get(backbone.type) is ConvNeXt


def build_module(cfg: Any) -> nn.Module:
    """Build a model or a part of it on the current device, for one process and without reading weights."""
    cfg = copy.deepcopy(cfg)
    for _, part in nested_dicts(cfg):
        if part.get('type') in ('SyncBN', 'MMSyncBN'):
            part['type'] = 'BN'
        if 'teacher_ckpt' in part:  # read when the teacher is built
            part['teacher_ckpt'] = None
    return MODELS.build(cfg)


def parameter_names(cfg: Any) -> list[str]:
    """Build a model and return the names of its parameters; raises what building it raises."""
    return [name for name, _ in _on_any_device(lambda: build_module(cfg)).named_parameters()]


def run_backbone(cfg: ConfigDict, image_size: int = IMAGE_SIZE) -> BackboneRun:
    """Run a backbone on two images, once in training and once in testing.

    Args:
        cfg: Its config.
        image_size: Height and width of the images. Those that the backbone is configured for are tried next.

    Raises:
        UserError: It does not run, or gives what ConvNeXt cannot.
    """
    in_channels = cfg.get('in_channels', 3)
    if not isinstance(in_channels, int) or in_channels <= 0:
        in_channels = 3
    sizes = list(dict.fromkeys([image_size, *as_list(cfg.get('img_size') or ())]))
    attempts = [(device, size) for device in DEVICES for size in sizes]
    for device, size in attempts:
        try:
            with torch.device(device):
                outputs, names = _run_in_both_modes(cfg, torch.rand(BATCH_SIZE, in_channels, size, size))
            break
        except UserError:
            raise
        except Exception as error:
            last_error = error
    else:
        raise UserError(
            f'the backbone {cfg.type} cannot be built here and run on an image by itself: {error_summary(last_error)}'
        ) from last_error
    shapes = _shapes_of_feature_maps(cfg.type, outputs)
    return BackboneRun(tuple(Feature(shape, _stride(shape, size)) for shape in shapes), size, tuple(names))


def run_module(
    cfg: Any, features: Sequence[Feature], previous: Feature | None = None, takes_one: bool = False
) -> ModuleRun:
    """Build a neck or head and run it once, in training, on random features.

    Args:
        cfg: Its config.
        features: Shapes and strides of its inputs.
        previous: Output of the head before it, if it takes that as well.
        takes_one: It takes the first feature instead of a tuple of all.

    Raises:
        Exception: What building or running it raises.
    """

    def build_and_run() -> ModuleRun:
        module = build_module(cfg)
        module.train()
        inputs = [torch.rand(feature.shape, requires_grad=True) for feature in features]
        arguments = [inputs[0] if takes_one else tuple(inputs)]
        if previous:
            arguments.append(torch.rand(previous.shape))
        outputs = [tensor for tensor in _tensors(module(*arguments)) if tensor.is_floating_point()]
        used = _inputs_with_gradient(inputs, outputs)
        image_size = _image_size(features)
        return ModuleRun(used, tuple(Feature(tuple(out.shape), _stride(out.shape, image_size)) for out in outputs))

    return _on_any_device(build_and_run)


def try_module(cfg: Any, features: Sequence[Feature], previous: Feature | None = None) -> ModuleRun | None:
    """Do as :func:`run_module`; return None if the module cannot be built, or run on features alone."""
    try:
        run = run_module(cfg, features, previous)
    except Exception:
        return None
    return run if run.used and run.outputs else None


def _run_in_both_modes(cfg: ConfigDict, images: Tensor) -> tuple[dict[str, Any], list[str]]:
    """Return the outputs of a backbone by mode, and the names of its parameters."""
    module = build_module(cfg)
    outputs = {}
    for mode in ('training', 'testing'):
        module.train(mode == 'training')
        with torch.no_grad():
            outputs[mode] = module(images)
    return outputs, [name for name, _ in module.named_parameters()]


def _shapes_of_feature_maps(backbone_type: str, outputs: dict[str, Any]) -> list[tuple[int, ...]]:
    """Return the shapes of a backbone's feature maps.

    Raises:
        UserError: ConvNeXt could not give such outputs.
    """
    shapes = {}
    for mode, output in outputs.items():
        is_collection = isinstance(output, (list, tuple))
        if not is_collection or not all(isinstance(item, Tensor) and item.ndim == 4 for item in output):
            raise UserError(
                f'the backbone {backbone_type} gives {_description(output)} in {mode}, '
                'which its head is made for: ConvNeXt gives a tuple of feature maps and nothing else'
            )
        shapes[mode] = [tuple(item.shape) for item in output]
    if shapes['training'] != shapes['testing']:
        raise UserError(
            f'the backbone {backbone_type} gives other features in training ({shapes["training"]}) than in testing '
            f'({shapes["testing"]}), and its head is made for both: ConvNeXt always gives the same'
        )
    for shape in shapes['training']:
        if shape[0] != BATCH_SIZE:
            raise UserError(
                f'the backbone {backbone_type} gives {shape[0] // BATCH_SIZE} feature maps an image (branches), which '
                'its heads are made for: ConvNeXt gives one'
            )
    return shapes['training']


def _inputs_with_gradient(inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> tuple[int, ...]:
    """Return the positions of the inputs on which any output depends."""
    differentiable = [output for output in outputs if output.requires_grad]
    ones = [torch.ones_like(output) for output in differentiable]
    gradients = torch.autograd.grad(differentiable, inputs, ones, allow_unused=True)
    return tuple(position for position, gradient in enumerate(gradients) if gradient is not None)


def _image_size(features: Sequence[Feature]) -> int:
    """Return the size of the image that features are of; 0 if no stride says it."""
    for feature in features:
        if feature.stride:
            return feature.stride * feature.shape[2]
    return 0


def _stride(shape: Sequence[int], image_size: int) -> int | None:
    """Return the stride of a feature; a border of one position more or less is ignored."""
    if len(shape) != 4 or shape[2] != shape[3] or not shape[2] or not image_size:
        return None
    if image_size % shape[2] == 0:
        return image_size // shape[2]
    for stride in (2, 4, 8, 16):
        if abs(shape[2] - image_size / stride) <= 1:
            return stride
    return None


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield every tensor of nested lists and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def _description(output: Any) -> str:
    if isinstance(output, (list, tuple)):
        kinds = dict.fromkeys(_description(item) for item in output)
        return f'a {type(output).__name__} of {", ".join(kinds)}'
    return f'a tensor of {output.ndim} dimensions' if isinstance(output, Tensor) else type(output).__name__


def _on_any_device(function: Callable[[], Result]) -> Result:
    """Call a function with the meta device as default, or if it fails there, with the CPU."""
    for device in DEVICES:
        try:
            with torch.device(device):
                return function()
        except Exception as error:
            last_error = error
    raise last_error
