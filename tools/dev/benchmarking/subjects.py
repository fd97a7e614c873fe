"""Rows that are built, with all that they have in common; the step of one is what is timed."""

from __future__ import annotations

import copy
import importlib
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

from benchmarking.machine import DTYPES
from benchmarking.options import Options
from benchmarking.peers import PEERS, SESSIONS, import_mmpretrain, random_state
from benchmarking.rows import KERNELS, Row, environment
from convnext_dense import ConvNeXt, prepare_for_inference
from convnext_dense.archs import resolve_arch
from convnext_dense.errors import UserError
from convnext_dense.export import export_onnx
from convnext_dense.run.machine import fit_to_machine
from convnext_dense.run.options import nested_dicts, read_config
from convnext_dense.run.train_test import has_masks
from convnext_dense.toolkits import check_toolkit

NO_FUNCTION = ('arch', 'drop_path_rate', 'memory', 'with_cp')  # peers have these, or equal ours without
# Arguments of our ConvNeXt for blocks of V1 and of V2.
KINDS_OF_BLOCKS = (dict(layer_scale_init_value=1.0), dict(layer_scale_init_value=0.0, use_grn=True))
BOXES = 7  # an image of COCO has 7.3 objects


class Task:
    """What all rows have in common: arch, weights, images, and the detector or segmentor around the backbone.

    Args:
        options: What to measure.
        batch: Images of a step.
        size: (height, width) of an image.

    Attributes:
        model: The detector or segmentor of ``options.config``; None for backbones alone.
        changes: What was changed in the config to run on this machine.
        state: The weights of every backbone, by the names of ours.
        image: (batch, 3, height, width) of noise.

    Raises:
        UserError: The backbone of the config has options that the peers lack.
    """

    def __init__(self, options: Options, batch: int, size: tuple[int, int]) -> None:
        self.options, self.batch, self.size = options, batch, size
        self.train = options.train
        self.device = torch.device(options.device)
        self.backbone_args: dict[str, Any] = dict(arch=options.arch, **KINDS_OF_BLOCKS[options.v2])
        self.model: nn.Module | None = None
        self.changes: list[str] = []
        if options.config:
            self._build_model(options.config, options.cfg_options)
        else:
            self.backbone_args['drop_path_rate'] = options.drop_path
        self.drop_path = self.backbone_args.get('drop_path_rate', 0.0)
        self.depths, self.channels = resolve_arch(self.backbone_args['arch'])
        compared = {key: value for key, value in self.backbone_args.items() if key not in NO_FUNCTION}
        if compared not in KINDS_OF_BLOCKS:
            raise UserError(
                f'the backbone of this config has {compared}: the peers can only be compared with '
                'layer_scale_init_value=1.0, or for V2 with use_grn=True and layer_scale_init_value=0.0, and defaults '
                'for all but arch and drop_path_rate'
            )
        self.v2 = compared == KINDS_OF_BLOCKS[True]
        self.state = random_state(ConvNeXt(self.backbone_args['arch'], **compared))
        generator = torch.Generator().manual_seed(0)
        self.image = torch.randn(batch, 3, *size, generator=generator).to(self.device)
        self._graph_folder: tempfile.TemporaryDirectory | None = None

    def _build_model(self, config: str, cfg_options: list[str]) -> None:
        cfg = read_config(config, cfg_options)
        with suppress(ImportError):  # before mmdet imports it in its own way, which fails
            import_mmpretrain()
        check_toolkit(cfg.get('default_scope') or 'mmengine')
        init_default_scope(cfg.default_scope)
        if cfg.model.get('backbone', {}).get('type') != 'ConvNeXt':
            raise UserError(f'{config} has no ConvNeXt as model.backbone: give a config that has')
        self.changes = fit_to_machine(cfg, 'none')
        self.backbone_args = cfg.model.backbone.to_dict()
        for key in ('type', 'init_cfg'):
            self.backbone_args.pop(key, None)
        cfg.model.backbone.init_cfg = None
        torch.manual_seed(0)
        model = MODELS.build(cfg.model)
        model.init_weights()
        self.model = model.to(self.device).train(self.train)
        self.samples = make_samples(cfg, self.batch, self.size, self.device)

    def run_model(self, backbone: nn.Module) -> Any:
        """Return the loss of a training step, or the predictions, of the detector or segmentor with this backbone."""
        assert self.model is not None
        self.model.backbone = backbone
        torch.manual_seed(0)  # heads draw samples of boxes
        data = self.model.data_preprocessor(copy.deepcopy(self.samples), self.train)
        if not self.train:
            return self.model(**data, mode='predict')
        loss, _ = self.model.parse_losses(self.model(**data, mode='loss'))
        return loss

    def sharpen(self, backbone: nn.Module) -> None:
        """Scale random classifiers until they are sure of something: a detector that finds nothing is fast."""
        assert self.model is not None
        for name, module in self.model.named_modules():
            if name.endswith('fc_cls'):
                spreads: list[Tensor] = []
                handle = module.register_forward_hook(partial(_keep_spread, spreads))
                self.run_model(backbone)
                handle.remove()
                module.weight.data.mul_(3 / spreads[0])

    def onnx_graph(self) -> Path:
        """Return our backbone as an ONNX graph, which is written once."""
        if self._graph_folder is None:
            self._graph_folder = tempfile.TemporaryDirectory()
            with environment({KERNELS: 'eager'}):
                model = ConvNeXt(**self.backbone_args)
                model.load_state_dict(self.state)
                export_onnx(model.eval(), Path(self._graph_folder.name) / 'backbone.onnx')
        return Path(self._graph_folder.name) / 'backbone.onnx'


def _keep_spread(spreads: list[Tensor], module: nn.Module, inputs: Any, logits: Tensor) -> None:
    """Keep the standard deviation of a classifier's outputs; a forward hook."""
    spreads.append(logits.float().std())


def make_samples(cfg: Config, batch: int, size: tuple[int, int], device: torch.device) -> dict[str, Any]:
    """Return images of noise with boxes, masks or label maps, as a data loader does.

    Args:
        cfg: A config of mmdet or mmseg.
        batch: Number of images.
        size: (height, width) of each.
        device: Where label maps go.
    """
    num_classes = next(part['num_classes'] for part in nested_dicts(cfg.model) if 'num_classes' in part)
    if 'decode_head' in cfg.model:
        return _segmentation_samples(num_classes, batch, size, device)
    from mmdet.testing import demo_mm_inputs

    data = demo_mm_inputs(
        batch,
        [(3, *size)] * batch,
        num_items=[BOXES] * batch,
        num_classes=num_classes,
        with_mask=has_masks(cfg),
    )
    for sample in data['data_samples']:
        sample.set_metainfo(dict(scale_factor=(1.0, 1.0)))
    return data


def _segmentation_samples(num_classes: int, batch: int, size: tuple[int, int], device: torch.device) -> dict[str, Any]:
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    generator = torch.Generator().manual_seed(0)
    meta = dict(img_shape=size, ori_shape=size, pad_shape=size, scale_factor=(1.0, 1.0), flip=False)
    samples = []
    for _ in range(batch):
        labels = PixelData(data=torch.randint(num_classes, (1, *size), generator=generator))
        samples.append(SegDataSample(gt_sem_seg=labels, metainfo=meta).to(device))
    images = [torch.randint(256, (3, *size), generator=generator, dtype=torch.uint8) for _ in range(batch)]
    return dict(inputs=images, data_samples=samples)


class Subject:
    """A row that is built.

    Attributes:
        model: The backbone; None for a runtime of ONNX graphs.
        autocast: Makes the context around the whole step.
        backbone_autocast: Makes the context around the backbone inside a detector or segmentor.

    Raises:
        ImportError: The library of the row is not installed.
    """

    def __init__(self, row: Row, task: Task) -> None:
        self.row, self.task = row, task
        self.autocast: Callable[[], Any] = nullcontext
        self.backbone_autocast: Callable[[], Any] = nullcontext
        # mmcv's CPU operators know no half types.
        self.heads_in_fp32 = task.model is not None and (task.device.type == 'cpu' or task.options.cast)
        self.model: nn.Module | None = None
        self.session: Callable[[Tensor], list[Tensor]] | None = None
        self.gradients: list[Tensor] = []
        if row.peer in SESSIONS:
            self.session = self._open_session()
            return
        with environment(row.environment):
            self.model = self._build()
        self.run = torch.compile(self.model) if row.compiled else self.model
        self.backbone = _BackboneOfModel(self)

    def _build(self) -> nn.Module:
        row, task = self.row, self.task
        if row.peer == 'ours':
            model: nn.Module = ConvNeXt(**{**task.backbone_args, **row.arguments})
            model.load_state_dict(task.state)
        else:
            build_peer, _ = PEERS[row.peer]
            model = build_peer(task.depths, task.channels, task.drop_path, task.state, task.v2)
        model.to(task.device)
        if row.layout == 'channels_last':
            model.to(memory_format=torch.channels_last)
        dtype = DTYPES[row.dtype]
        if task.options.cast:
            model.to(dtype)
        elif dtype != torch.float32:
            autocast = partial(torch.autocast, task.device.type, dtype)
            if self.heads_in_fp32:
                self.backbone_autocast = autocast
            else:
                self.autocast = autocast
        model.train(task.train)  # mmpretrain's returns None
        if row.peer == 'ours' and row.prepared and not task.train:
            prepare_for_inference(model)
        return model

    def _open_session(self) -> Callable[[Tensor], list[Tensor]]:
        if self.task.device.type != 'cpu':
            raise ImportError('it is measured on the CPU only')
        importlib.import_module(self.row.peer)
        open_session, _ = SESSIONS[self.row.peer]
        shape = tuple(self.task.image.shape)
        return open_session(self.task.onnx_graph(), shape, torch.get_num_threads(), self.row.dtype)

    def features(self, image: Tensor) -> list[Tensor]:
        """(N, 3, H, W) -> one contiguous tensor (N, C, H / stride, W / stride) per stage."""
        if self.session is not None:
            return self.session(image)
        if self.task.options.cast:
            image = image.to(DTYPES[self.row.dtype])
        if self.row.layout == 'channels_last':
            image = image.contiguous(memory_format=torch.channels_last)
        return [output.contiguous() for output in self.run(image)]

    def forward(self) -> Any:
        if self.task.model is not None:
            return self.task.run_model(self.backbone)
        return self.features(self.task.image)

    def backward(self, result: Any) -> None:
        if self.task.model is not None:
            result.backward()
            return
        wanted = [(output.shape, output.dtype) for output in result]
        if wanted != [(gradient.shape, gradient.dtype) for gradient in self.gradients]:
            self.gradients = random_gradients(result)
        torch.autograd.backward(result, self.gradients)

    def step(self) -> Any:
        """Run forward, and in training backward; return the features, predictions or loss."""
        with environment(self.row.environment):
            if not self.task.train:
                with torch.no_grad(), self.autocast():
                    return self.forward()
            with self.autocast():
                result = self.forward()
            self.backward(result)
            return result

    def clear(self) -> None:
        """Free the gradients: other rows want the memory."""
        for model in (self.model, self.task.model):
            if model is not None:
                model.zero_grad(set_to_none=True)

    def seconds(self) -> float:
        """Run and time one step."""
        if self.task.device.type == 'cuda':
            torch.cuda.synchronize()
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            self.step()
            end.record()
            torch.cuda.synchronize()
            seconds = begin.elapsed_time(end) / 1000
        else:
            start = time.perf_counter()
            self.step()
            seconds = time.perf_counter() - start
        self.clear()
        return seconds


def random_gradients(outputs: list[Tensor]) -> list[Tensor]:
    """Return a gradient for each output, the same in every row."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(output.shape, generator=generator).to(output) for output in outputs]


class _BackboneOfModel(nn.Module):
    """The backbone of a row inside a detector, whose own weights are shared by all rows.

    It hands contiguous features to RoIAlign, which reads memory as NCHW.
    """

    def __init__(self, subject: Subject) -> None:
        super().__init__()
        self.subject = [subject]  # no submodule: it would be a cycle

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        (subject,) = self.subject
        with subject.backbone_autocast():
            features = subject.features(image)
        if subject.heads_in_fp32:
            return tuple(feature.float() for feature in features)
        return tuple(features)
