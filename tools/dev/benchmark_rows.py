"""What tools/dev/benchmark.py measures: rows, the step of each, comparing them, and the memory that a step takes."""

from __future__ import annotations

import argparse
import copy
import inspect
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from benchmark_peers import BLOCKS, PEERS, SESSIONS, Official, import_mmpretrain, random_state
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

from convnext_dense import ConvNeXt, UserError
from convnext_dense.archs import resolve_arch
from convnext_dense.export import export_onnx
from convnext_dense.run.machine import fit_to_machine
from convnext_dense.run.options import read_config
from convnext_dense.toolkits import check_toolkit

KERNELS = 'CONVNEXT_DENSE_KERNELS'
DTYPES = {'fp32': torch.float32, 'bf16': torch.bfloat16, 'fp16': torch.float16}
# Relative difference from the official formulation in fp32 that is allowed: outputs, and the gradient of the stem.
TOLERANCES = {'fp32': (1e-4, 1e-3), 'bf16': (5e-2, 2e-1), 'fp16': (1e-2, 5e-2)}
TF32_TOLERANCE = (1e-2, 5e-2)  # convolutions of fp32 on GPUs
MIB = 2**20
NO_FUNCTION = ('arch', 'drop_path_rate', 'memory', 'with_cp')  # peers have these, or equal ours without
BOXES = 7  # an image of COCO has 7.3 objects


@dataclass(frozen=True)
class Row:
    """One thing to measure.

    Attributes:
        name: As in the tables and in ``--only``.
        peer: Whose code it is: ``ours``, a name of ``PEERS`` or of ``SESSIONS``.
        arguments, environment: Of our ConvNeXt: extra arguments, and variables (None: not set) while it is built and
            runs.
    """

    name: str
    peer: str
    dtype: str
    layout: str = 'contiguous'
    compiled: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return f'{self.name} {self.dtype}'


def all_rows(args: argparse.Namespace) -> list[Row]:
    """Every row that the options ask for, whether its library is installed or not."""
    rows = []
    for dtype in args.dtype:
        ours = Row('ours', 'ours', dtype, environment={KERNELS: None})
        eager = replace(ours, name='ours eager', environment={KERNELS: 'eager'})
        rows += [ours, eager]
        if args.mode == 'train' and 'memory' in inspect.signature(ConvNeXt).parameters:
            rows += [replace(ours, name=f'ours {mode}', arguments={'memory': mode}) for mode in ('lean', 'checkpoint')]
        rows += [
            replace(ours, name=f'ours {name}', arguments=arguments, environment={**ours.environment, **variables})
            for name, arguments, variables in map(parse_variant, args.ours)
        ]
        for peer, (_, layouts) in PEERS.items():
            wanted = {'auto': layouts, 'both': ('contiguous', 'channels_last')}.get(args.layout, (args.layout,))
            rows += [
                Row(peer + (' channels_last' if layout == 'channels_last' else ''), peer, dtype, layout)
                for layout in wanted
            ]
        if args.compile:
            rows += [
                replace(row, name=f'{row.name} compiled', compiled=True)
                for row in rows
                if row.dtype == dtype and (row is ours or row.peer in ('official', 'timm'))
            ]
        if args.mode == 'inference' and not args.config:
            rows += [Row(runtime, runtime, dtype) for runtime, (_, dtypes) in SESSIONS.items() if dtype in dtypes]
    if args.only:
        names = sorted({name for row in rows for name in (row.name, row.peer)})
        unknown = [name for name in args.only if name not in names]
        if unknown:
            raise UserError(f'--only {unknown[0]!r}: there is no such row here, choose from {", ".join(names)}')
        # A peer's name stands for all of its rows, but `ours` is a row as well as a peer.
        rows = [row for row in rows if row.name in args.only or (row.peer in args.only and row.peer != 'ours')]
    return rows


def parse_variant(text: str) -> tuple[str, dict[str, Any], dict[str, str]]:
    """``NAME:KEY=VALUE,...`` -> name, arguments, environment variables (keys in capitals)."""
    match = re.fullmatch(r'([^:]+):(\w+=[^,=]+(?:,\w+=[^,=]+)*)', text)
    if not match:
        raise UserError(
            f'--ours {text}: write NAME:KEY=VALUE,KEY=VALUE, as in checkpoint:with_cp=True; keys in '
            'capitals are environment variables'
        )
    pairs = dict(pair.split('=') for pair in match[2].split(','))
    return (
        match[1],
        {key: yaml.safe_load(value) for key, value in pairs.items() if not key.isupper()},
        {key: value for key, value in pairs.items() if key.isupper()},
    )


@contextmanager
def environment(variables: Mapping[str, str | None]) -> Iterator[None]:
    """Environment variables for a while; None unsets one."""
    before = {name: os.environ.get(name) for name in variables}

    def put(values: Mapping[str, str | None]) -> None:
        for name, value in values.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    put(variables)
    try:
        yield
    finally:
        put(before)


# ---- what a row does


class Task:
    """What all rows have in common: arch, weights, images, and the detector or segmentor around the backbone."""

    def __init__(self, args: argparse.Namespace, batch: int, size: tuple[int, int]) -> None:
        self.args, self.batch, self.size = args, batch, size
        self.train = args.mode == 'train'
        self.device = torch.device(args.device)
        self.backbone_args: dict[str, Any] = dict(arch=args.arch, layer_scale_init_value=1.0)
        self.model: nn.Module | None = None
        self.changes: list[str] = []
        if args.config:
            self._build_model(args)
        else:
            self.backbone_args['drop_path_rate'] = args.drop_path
        self.drop_path = self.backbone_args.get('drop_path_rate', 0.0)
        self.depths, self.channels = resolve_arch(self.backbone_args['arch'])
        plain = {key: value for key, value in self.backbone_args.items() if key not in NO_FUNCTION}
        if plain != {'layer_scale_init_value': 1.0}:
            raise UserError(
                f'the backbone of this config has {plain}: the peers can only be compared with '
                'layer_scale_init_value=1.0 and defaults for all but arch and drop_path_rate'
            )
        self.state = random_state(self.backbone_args['arch'])
        generator = torch.Generator().manual_seed(0)
        self.image = torch.randn(batch, 3, *size, generator=generator).to(self.device)
        self.graph: Path | None = None

    def _build_model(self, args: argparse.Namespace) -> None:
        cfg: Config = read_config(args)
        with suppress(ImportError):  # before mmdet imports it in its own way, which fails
            import_mmpretrain()
        check_toolkit(cfg.get('default_scope') or 'mmengine')
        init_default_scope(cfg.default_scope)
        if cfg.model.get('backbone', {}).get('type') != 'ConvNeXt':
            raise UserError(f'{args.config} has no ConvNeXt as model.backbone: give a config that has')
        self.changes = fit_to_machine(cfg, 'none')
        self.backbone_args = {
            key: value for key, value in cfg.model.backbone.to_dict().items() if key not in ('type', 'init_cfg')
        }
        cfg.model.backbone.init_cfg = None
        torch.manual_seed(0)
        self.model = MODELS.build(cfg.model)
        self.model.init_weights()
        self.model.to(self.device).train(self.train)
        self.samples = make_samples(cfg, self.batch, self.size, self.device)

    def run_model(self, backbone: nn.Module) -> Any:
        """One training step or prediction of the detector or segmentor with this backbone."""
        self.model.backbone = backbone
        torch.manual_seed(0)  # heads draw samples of boxes
        data = self.model.data_preprocessor(copy.deepcopy(self.samples), self.train)
        if not self.train:
            return self.model(**data, mode='predict')
        loss, _ = self.model.parse_losses(self.model(**data, mode='loss'))
        return loss

    def sharpen(self, backbone: nn.Module) -> None:
        """Scale random classifiers until they are sure of something: a detector that finds nothing is fast."""
        for name, module in self.model.named_modules():
            if name.endswith('fc_cls'):
                logits = []
                handle = module.register_forward_hook(lambda _, __, out: logits.append(out.float().std()))  # noqa: B023
                self.run_model(backbone)
                handle.remove()
                module.weight.data.mul_(3 / logits[0])


def make_samples(cfg: Config, batch: int, size: tuple[int, int], device: torch.device) -> dict:
    """Images of noise with boxes, masks or label maps, as a data loader gives them."""
    text = str(cfg.model)
    classes = int(re.search(r"'num_classes': (\d+)", text)[1])
    if 'decode_head' in cfg.model:
        from mmengine.structures import PixelData
        from mmseg.structures import SegDataSample

        generator = torch.Generator().manual_seed(0)
        samples = []
        for _ in range(batch):
            labels = PixelData(data=torch.randint(classes, (1, *size), generator=generator))
            meta = dict(img_shape=size, ori_shape=size, pad_shape=size, scale_factor=(1.0, 1.0), flip=False)
            samples.append(SegDataSample(gt_sem_seg=labels, metainfo=meta).to(device))
        images = [torch.randint(256, (3, *size), generator=generator, dtype=torch.uint8) for _ in range(batch)]
        return dict(inputs=images, data_samples=samples)
    from mmdet.testing import demo_mm_inputs

    data = demo_mm_inputs(
        batch, [(3, *size)] * batch, num_items=[BOXES] * batch, num_classes=classes, with_mask='mask_head' in text
    )
    for sample in data['data_samples']:
        sample.set_metainfo(dict(scale_factor=(1.0, 1.0)))
    return data


class Subject:
    """A row, built: ``step()`` is what is timed."""

    def __init__(self, row: Row, task: Task) -> None:
        self.row, self.task = row, task
        self.autocast: Callable[[], Any] = nullcontext  # around the whole step
        self.backbone_autocast: Callable[[], Any] = nullcontext
        # mmcv's CPU operators know no half types.
        self.heads_in_fp32 = task.model is not None and (task.device.type == 'cpu' or task.args.cast)
        self.session: Callable[[Tensor], list[Tensor]] | None = None
        self.gradients: list[Tensor] = []
        self.detections: float | None = None
        if row.peer in SESSIONS:
            self._open_session()
            return
        with environment(row.environment):
            if row.peer == 'ours':
                model = ConvNeXt(**{**task.backbone_args, **row.arguments})
                model.load_state_dict(task.state)
            else:
                model = PEERS[row.peer][0](task.depths, task.channels, task.drop_path, task.state)
            model.to(task.device)
            if row.layout == 'channels_last':
                model.to(memory_format=torch.channels_last)
            dtype = DTYPES[row.dtype]
            if task.args.cast:
                model.to(dtype)
            elif dtype != torch.float32:
                autocast = partial(torch.autocast, task.device.type, dtype)
                self.autocast, self.backbone_autocast = (
                    (nullcontext, autocast) if self.heads_in_fp32 else (autocast, nullcontext)
                )
            model.train(task.train)  # mmpretrain's gives None
        self.model = model
        self.run = torch.compile(model) if row.compiled else model
        # What a detector calls; it hands contiguous features to RoIAlign, which reads memory as NCHW.
        self.backbone = _Contiguous(self)

    def _open_session(self) -> None:
        task, make = self.task, SESSIONS[self.row.peer][0]
        if task.device.type != 'cpu':
            raise ImportError('it is measured on the CPU only')
        __import__(self.row.peer)
        self.model = None
        self.session = make(exported(task), tuple(task.image.shape), torch.get_num_threads(), self.row.dtype)

    def features(self, image: Tensor) -> list[Tensor]:
        if self.session is not None:
            return self.session(image)
        if self.task.args.cast:
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
        if [(g.shape, g.dtype) for g in self.gradients] != [(out.shape, out.dtype) for out in result]:
            generator = torch.Generator().manual_seed(1)
            self.gradients = [torch.randn(out.shape, generator=generator).to(out) for out in result]
        torch.autograd.backward(result, self.gradients)

    def step(self) -> Any:
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
        for model in filter(None, (self.model, self.task.model)):
            model.zero_grad(set_to_none=True)

    def seconds(self) -> float:
        """Of one step."""
        if self.task.device.type == 'cuda':
            torch.cuda.synchronize()
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            self.step()
            end.record()
            torch.cuda.synchronize()
            took = begin.elapsed_time(end) / 1000
        else:
            start = time.perf_counter()
            self.step()
            took = time.perf_counter() - start
        self.clear()
        return took


class _Contiguous(nn.Module):
    """The backbone of a row inside a detector; the detector's own weights are shared by all rows."""

    def __init__(self, subject: Subject) -> None:
        super().__init__()
        self.subject = [subject]  # no submodule: it would be a cycle

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        with self.subject[0].backbone_autocast():
            features = self.subject[0].features(image)
        return tuple(feature.float() for feature in features) if self.subject[0].heads_in_fp32 else tuple(features)


def exported(task: Task) -> Path:
    """Our backbone as an ONNX graph, written once."""
    if task.graph is None:
        task.folder = tempfile.TemporaryDirectory()
        task.graph = Path(task.folder.name) / 'backbone.onnx'
        with environment({KERNELS: 'eager'}):
            model = ConvNeXt(**task.backbone_args)
            model.load_state_dict(task.state)
            export_onnx(model.eval(), task.graph)
    return task.graph


# ---- comparing


def stem_gradient(model: nn.Module) -> Tensor:
    return next(module for module in model.modules() if isinstance(module, nn.Conv2d)).weight.grad.float()


def relative(found: Tensor, wanted: Tensor) -> float:
    return ((found.float() - wanted).norm() / wanted.norm()).item()


class Reference:
    """The official formulation in fp32, which every row must equal: outputs, and in training the stem's gradient."""

    def __init__(self, task: Task) -> None:
        self.task = task
        # The features and their gradient are those of the backbone alone, without stochastic depth.
        self.gradient = task.train and task.drop_path == 0
        options = argparse.Namespace(**{**vars(task.args), 'cast': False})
        alone = copy.copy(task)
        alone.args, alone.model = options, None
        self.wanted = self._of(Subject(Row('official', 'official', 'fp32'), alone))

    def _of(self, subject: Subject) -> tuple[list[Tensor], Tensor | None]:
        model = subject.model
        if model is not None and not self.gradient:
            model.eval()
        with environment(subject.row.environment), torch.set_grad_enabled(self.gradient):
            with subject.autocast(), subject.backbone_autocast():
                outputs = subject.features(self.task.image)
            gradient = None
            if self.gradient:
                generator = torch.Generator().manual_seed(1)
                torch.autograd.backward(
                    outputs, [torch.randn(out.shape, generator=generator).to(out) for out in outputs]
                )
                gradient = stem_gradient(model).clone()
        if model is not None:
            model.train(self.task.train)
            model.zero_grad(set_to_none=True)
        return [output.detach().float() for output in outputs], gradient

    def check(self, subject: Subject) -> dict[str, float]:
        """The relative differences of a row.

        Raises:
            UserError: They are above :data:`TOLERANCES`.
        """
        outputs, gradient = self._of(subject)
        wanted, wanted_gradient = self.wanted
        found = {'outputs': max(relative(out, want) for out, want in zip(outputs, wanted, strict=True))}
        if self.gradient:
            found['gradient'] = relative(gradient, wanted_gradient)
        for (what, difference), allowed in zip(found.items(), tolerances(subject.row.dtype, self.task.device)):
            if not difference <= allowed:
                raise UserError(
                    f'the {what} of {subject.row.key} differ from the official formulation by '
                    f'{difference:.1e} (relative, at most {allowed:.0e} is allowed): its time would mean '
                    'nothing; leave it out by --only, or find the error'
                )
        return found


def tolerances(dtype: str, device: torch.device) -> tuple[float, float]:
    return TF32_TOLERANCE if dtype == 'fp32' and device.type == 'cuda' else TOLERANCES[dtype]


# ---- work and memory


def count_gflop(task: Task, kinds: tuple[type, ...] = (nn.Conv2d, nn.Linear)) -> float:
    """Matrix products and convolutions of one step of the backbone, multiply and add counted separately."""
    with torch.device('meta'):  # shapes are enough
        model, image = Official(task.depths, task.channels, 0.0), torch.empty(task.image.shape)
    products = []
    for module in model.modules():
        if isinstance(module, kinds):
            module.register_forward_hook(lambda layer, _, out: products.append(out.numel() * layer.weight[0].numel()))
    model(image)
    # Backward: as much again for the weights and for the inputs, but the stem's input needs no gradient.
    stem = products[0] if nn.Conv2d in kinds else 0
    return 2 * (3 * sum(products) - stem if task.train else sum(products)) / 1e9


# Operators by what they do; the others are `rest`.
OPERATORS = {
    'matrix products': r'mm|addmm|bmm|_linear_pointwise|linear',
    'convolutions': r'.*convolution.*',
    'LayerNorm': r'.*layer_norm.*',
    'GELU': r'gelu.*',
    'copies': r'copy_|cat|constant_pad_nd|fill_|.*index_(copy|add|select).*|index',
    'sums': r'add_?|sum|mul_?|mean|div_?|pow|sub_?|sqrt_?|rsqrt_?',
}


def operators(subject: Subject, steps: int = 5) -> dict[str, float]:
    """Milliseconds of each kind of operator, in the fastest of some steps, under PyTorch's profiler."""
    device = subject.task.device.type
    time_of = 'self_cpu_time_total' if device == 'cpu' else 'self_device_time_total'
    found = []
    for _ in range(steps):
        with torch.profiler.profile(activities=[getattr(torch.profiler.ProfilerActivity, device.upper())]) as profile:
            subject.step()
        kinds = dict.fromkeys((*OPERATORS, 'rest'), 0.0)
        for event in profile.key_averages():
            name = event.key.split('::')[-1]
            kind = next((kind for kind, pattern in OPERATORS.items() if re.fullmatch(pattern, name)), 'rest')
            kinds[kind] += getattr(event, time_of) / 1000
        found.append(kinds)
        subject.clear()
    return min(found, key=lambda kinds: sum(kinds.values()))


def peak_memory(subject: Subject) -> dict[str, float | None]:
    """MiB at the peak of a step: of the process, and above what is there before a step. For a process of its own."""
    cuda = subject.task.device.type == 'cuda'
    before = torch.cuda.memory_allocated() if cuda else _status('VmRSS')
    subject.step()  # lasting things too: weights in other layouts, what a compiler keeps
    subject.clear()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        subject.step()
        peak = torch.cuda.max_memory_allocated()
    else:
        with suppress(OSError):
            Path('/proc/self/clear_refs').write_text('5')  # the high-water mark starts anew
        subject.step()
        peak = _status('VmHWM')
    if before is None or peak is None:
        return dict(peak_mib=None, step_mib=None)
    return dict(peak_mib=round(peak / MIB, 1), step_mib=round((peak - before) / MIB, 1))


def _status(name: str) -> int | None:
    """A figure of this process in bytes; None where the system is not Linux. (ru_maxrss starts with the parent's.)"""
    path = Path('/proc/self/status')
    match = path.exists() and re.search(rf'{name}:\s+(\d+) kB', path.read_text())
    return int(match[1]) * 1024 if match else None


def saved_activations(subject: Subject) -> dict[str, float | None]:
    """What autograd keeps from forward to backward in the backbone, without stochastic depth.

    Counted with one image and with two: the difference is what an image costs, without weights and copies of them.

    Returns:
        MiB for the batch, and bytes for each token and channel of a block (None where blocks are not called).
    """
    subject.model.eval()
    (one, one_in_blocks, _), (two, two_in_blocks, numbers) = (_saved_bytes(subject, images) for images in (1, 2))
    subject.model.train(subject.task.train)
    return dict(
        saved_mib=round((two - one) * subject.task.batch / MIB, 2),
        bytes_per_token_channel=round(2 * (two_in_blocks - one_in_blocks) / numbers, 2) if numbers else None,
    )


def _saved_bytes(subject: Subject, images: int) -> tuple[int, int, int]:
    """Bytes that a forward pass saves, each storage once: in all, and of blocks; numbers in the outputs of blocks."""
    storages: dict[int, tuple[Any, bool]] = {}  # kept, or an address would be used again
    inputs: dict[int, Tensor] = {}  # of blocks: a checkpoint keeps them outside of it
    inside, numbers = [False], [0]

    def pack(tensor: Tensor) -> Tensor:
        if tensor.layout == torch.strided:  # oneDNN's opaque layouts are weights
            storage = tensor.untyped_storage()
            storages.setdefault(storage.data_ptr(), (storage, inside[0]))
        return tensor

    def enter(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        inside[0] = True
        inputs[args[0].untyped_storage().data_ptr()] = args[0]

    def leave(_: nn.Module, __: Any, out: Tensor) -> None:
        inside[0] = False
        numbers[0] += out.numel()

    handles = []
    for module in subject.model.modules():
        if type(module).__name__ in BLOCKS:
            handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    image = subject.task.image[:1].expand(images, -1, -1, -1).contiguous()
    with (
        environment(subject.row.environment),
        subject.autocast(),
        subject.backbone_autocast(),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        outputs = subject.features(image)
    for handle in handles:
        handle.remove()
    del outputs
    in_blocks = sum(
        storage.nbytes() for address, (storage, of_block) in storages.items() if of_block or address in inputs
    )
    return sum(storage.nbytes() for storage, _ in storages.values()), in_blocks, numbers[0]
