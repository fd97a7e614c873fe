"""Swap every model of the installed zoos and train each for one step: python tools/dev/swap_sweep.py --out OUT.json

First with --no-swap, which says what builds and runs here at all and what each neck and head receives; then with
--baseline, which has to give every one of them features of the same strides. Stopped, it goes on where it was: `make
sweep` does both.
"""

from __future__ import annotations

import argparse
import collections
import copy
import hashlib
import importlib
import json
import multiprocessing
import os
import random
import re
import resource
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# One child at a time has one thread; the parent never starts any, so that its children can be forked.
os.environ.update(OMP_NUM_THREADS='1', MKL_NUM_THREADS='1', HF_HUB_OFFLINE='1', TRANSFORMERS_OFFLINE='1')

import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData, PixelData
from torch import Tensor, nn

from convnext_dense import ConvNeXt, PyramidAdapter, UserError, swap_backbone
from convnext_dense.mmcv_ops import operators_in_use
from convnext_dense.mmcv_ops.finder import ExtensionFinder
from convnext_dense.swap.probe import build_module

TOOLKITS = ('mmdet', 'mmseg')
SIZES = (128, 320)  # of the images; the next one, then its own, where a model needs larger ones
OUTCOMES = ('runs', 'refused', 'fails')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split(':')[0])
    parser.add_argument('--out', type=Path, required=True, metavar='JSON', help='written after every model')
    parser.add_argument('--no-swap', action='store_true', help='run the models of the zoos as they are: the baseline')
    parser.add_argument(
        '--baseline',
        type=Path,
        metavar='JSON',
        help='what --no-swap wrote: the models that run there are swapped and have to receive the same strides',
    )
    parser.add_argument(
        '--publish', type=Path, metavar='JSON', help='also write a summary of both, and its table beside it'
    )
    parser.add_argument('--arch', default='atto')
    parser.add_argument('--only', default='', metavar='TEXT', help='only configs with this in their name')
    parser.add_argument(
        '--again',
        default='',
        choices=['', 'fails', 'refused', 'not-run'],
        help='do the models with this outcome once more',
    )
    parser.add_argument('--per-family', type=int, default=0, metavar='N', help='at most N models of each family')
    parser.add_argument(
        '--initialise', action='store_true', help='always initialise the weights, so that losses repeat'
    )
    parser.add_argument(
        '--size', type=int, metavar='PIXELS', help='of the images; by default the smallest that the model takes'
    )
    parser.add_argument('--provided', action='store_true', help='use our operators where mmcv has compiled ones, too')
    parser.add_argument('--cpu-seconds', type=int, default=120, help='limit of one model')
    parser.add_argument('--memory', type=float, default=12, metavar='GIB', help='limit of one model')
    args = parser.parse_args()
    if bool(args.baseline) == args.no_swap:
        parser.error('give either --no-swap or --baseline')
    if args.baseline and args.size:
        parser.error('--size goes with --no-swap: swapped models get images of the size in the baseline')
    sys.exit(sweep(args))


def sweep(args: argparse.Namespace) -> int:
    """Returns how many models fail."""
    if args.provided:
        sys.meta_path.insert(0, ExtensionFinder())
    for toolkit in TOOLKITS:
        for part in ('models', 'datasets', 'structures', 'evaluation', 'engine'):
            importlib.import_module(f'{toolkit}.{part}')
    results = json.loads(args.out.read_text()) if args.out.exists() else dict(models={})
    if args.baseline:
        baseline = json.loads(args.baseline.read_text())
        known = {key: model for key, model in baseline['models'].items() if model['outcome'] == 'runs'}
        groups = {key: model['configs'] for key, model in known.items()}
    else:
        known = {}
        groups, results['without_model'] = same_models()
    results['settings'] = dict(
        arch=None if args.no_swap else args.arch,
        operators=operators_in_use(),
        versions={name: importlib.import_module(name).__version__ for name in ('torch', 'mmengine', 'mmcv', *TOOLKITS)},
    )
    todo = models_to_do(groups, results['models'], args)
    for number, (key, configs) in enumerate(todo):
        trained = {}
        if args.baseline:
            # Many differ in their old backbone alone: such a model is trained once, the swap is done for each.
            for model in results['models'].values():
                if model['outcome'] == 'runs':
                    trained[model['swapped']] = model
        result = run_apart(one_model, args.cpu_seconds, args.memory, configs[0], args, known.get(key), trained)
        results['models'][key] = dict(configs=configs, **result)
        write(args.out, results)
        print(
            f'{number + 1}/{len(todo)} {configs[0]} ({len(configs)}): {result["outcome"]} {result["seconds"]} s '
            f'{result.get("reason", "")[:300]}',
            flush=True,
        )
    write(args.out, results)
    print(table(results['models']))
    if args.publish and args.baseline:
        publish(args.publish, baseline, results)
    return sum(model['outcome'] == 'fails' for model in results['models'].values()) if args.baseline else 0


def models_to_do(groups: dict[str, list[str]], done: dict[str, dict], args: argparse.Namespace) -> list[tuple]:
    """Return (key, configs) of the models that the options ask for, the first of every family first."""
    todo, seen_of_family = [], collections.Counter()
    for key, configs in groups.items():
        if args.only not in configs[0]:
            continue
        rank = seen_of_family[family(configs[0])]
        seen_of_family[family(configs[0])] += 1
        if args.per_family and rank >= args.per_family:
            continue
        outcome = done.get(key, {}).get('outcome')
        is_asked_again = args.again == outcome or (args.again == 'not-run' and outcome != 'runs')
        if outcome is None or is_asked_again:
            todo.append((rank, key, configs))
    todo.sort(key=lambda entry: entry[0])
    return [(key, configs) for _, key, configs in todo]


def same_models() -> tuple[dict[str, list[str]], dict[str, str]]:
    """Configs by a hash of their model, so that each model is run once; and those without a model, with the reason."""
    groups, without = {}, {}
    for toolkit in TOOLKITS:
        folder = Path(importlib.import_module(toolkit).__file__).parent / '.mim' / 'configs'
        for path in sorted(folder.rglob('*.py')):
            name = f'{toolkit}::{path.relative_to(folder)}'
            if '_base_' in path.parts:
                continue
            try:
                cfg = Config.fromfile(path, import_custom_modules=False)
            except Exception as error:
                without[name] = f'{type(error).__name__}: {error}'.replace(str(folder), '')
                continue
            if 'model' not in cfg:
                without[name] = 'holds no model'
                continue
            groups.setdefault(hash_of(name, cfg), []).append(name)
    return groups, without


def hash_of(name: str, cfg: Config) -> str:
    """Equal for models that differ in nothing but their weights."""
    text = json.dumps([name.split('::')[0], without_weights(cfg.model.to_dict())], sort_keys=True, default=str)
    return hashlib.sha1(text.encode()).hexdigest()[:12]


def family(config: str) -> str:
    """``mmdet::fcos`` of ``mmdet::fcos/fcos_r50.py``."""
    return config.split('/')[0]


def without_weights(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: without_weights(item)
            for key, item in value.items()
            if key not in ('init_cfg', 'pretrained', 'teacher_ckpt')
        }
    if isinstance(value, (list, tuple)):
        return type(value)(without_weights(item) for item in value)
    return value


def run_apart(function, cpu_seconds: int, memory: float, *args) -> dict:
    """``function(*args)`` in a forked child with a limit of CPU time and memory (time that it is stopped is free)."""
    context = multiprocessing.get_context('fork')
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(theirs, cpu_seconds, memory, function, args))
    child.start()
    theirs.close()
    result, waited, last_look = None, 0.0, time.monotonic()
    while result is None and waited < 5 * cpu_seconds:
        try:
            if ours.poll(1):
                result = ours.recv()
        except EOFError:
            break
        look = time.monotonic()
        waited += min(look - last_look, 2)
        last_look = look
    if result is None:
        child.kill()
    child.join()
    if result is None:
        reason = (
            f'stopped: more than {cpu_seconds} s of CPU time'
            if child.exitcode in (-24, -9)
            else f'ended with status {child.exitcode}'
        )
        result = dict(outcome='fails', reason=reason, seconds=cpu_seconds)
    return result


def _child(pipe, cpu_seconds: int, memory: float, function, args) -> None:
    start = time.process_time()
    limit = int(memory * 2**30) + 4096 * int(Path('/proc/self/statm').read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    try:
        result = dict(outcome='runs', **function(*args))
    except UserError as error:
        result = dict(outcome='refused', reason=str(error))
    except BaseException as error:
        frames = [f'{Path(frame.filename).name}:{frame.lineno}' for frame in traceback.extract_tb(error.__traceback__)]
        result = dict(outcome='fails', reason=f'{type(error).__name__}: {error}'[:400] + f' ({" ".join(frames[-3:])})')
    result['seconds'] = round(time.process_time() - start, 1)
    pipe.send(result)
    pipe.close()
    os._exit(0)


def one_model(name: str, args: argparse.Namespace, known: dict | None, trained: dict[str, dict]) -> dict:
    """Build, one loss, backward, predict; every neck and head has to receive what is ``known``.

    ``trained``: results of swapped models, by :func:`hash_of`, which need not be trained again.
    """
    torch.set_num_threads(1)
    toolkit = name.split('::')[0]
    folder = Path(importlib.import_module(toolkit).__file__).parent / '.mim'
    os.chdir(folder)  # teacher configs are given relative to it
    socket.socket.connect = _no_network
    warnings.filterwarnings('ignore')
    cfg = Config.fromfile(folder / 'configs' / name.split('::')[1])
    init_default_scope(cfg.get('default_scope', toolkit))
    before = cfg
    if not args.no_swap:
        cfg = swap_backbone(before, args.arch)
    if known:
        sizes = [known['size']]
    elif args.size:
        sizes = [args.size]
    else:
        image_sizes = [value for value in values_of(before.model.to_dict(), 'img_size') if value]
        largest_sides = [value if isinstance(value, int) else max(value) for value in image_sizes]
        sizes = sorted({*SIZES, *(largest_sides or [512])})
    key = hash_of(name, cfg)
    if key in trained and trained[key]['size'] in sizes:
        compare(known['received'], trained[key]['received'], trained[key]['size'])
        return {name: trained[key][name] for name in ('size', 'received', 'swapped', 'losses')}
    attempts = [(size, True) for size in sizes]
    if not args.initialise:
        attempts.insert(0, (sizes[0], False))
    for size, initialised in attempts:
        try:
            found, losses = train_and_predict(cfg, size, initialised)
            break
        except Exception:
            if (size, initialised) == attempts[-1]:
                raise
    if known:
        compare(known['received'], found, size)
    return dict(size=size, received=found, swapped=key, losses=losses)


def _no_network(*args, **kwargs):
    raise OSError('the sweep has no network')


def train_and_predict(cfg: Config, size: int, initialised: bool) -> tuple[dict[str, list], dict[str, float]]:
    """What each neck and head received in one loss, with its backward pass, and one prediction; and the losses."""
    random.seed(0)
    torch.manual_seed(0)
    np.random.seed(0)
    model_cfg = without_weights(copy.deepcopy(cfg.model.to_dict()))
    for part in (*values_of(model_cfg, 'train_cfg'), *values_of(model_cfg, 'test_cfg')):
        _fewer_regions(part)
    preprocessor = model_cfg.get('data_preprocessor') or {}
    preprocessor.pop('batch_augments', None)  # they draw sizes
    if preprocessor.get('type', '').endswith('SegDataPreProcessor'):
        preprocessor.update(size=(size, size), size_divisor=None)
    model = build_module(Config(dict(model=model_cfg)).model)
    if hasattr(model, 'set_epoch'):
        model.set_epoch(0)  # as a hook does in training
    if initialised:
        model.init_weights()  # slow, and most models start well enough without it
    model.train()
    swapped = [module for module in model.modules() if isinstance(module, ConvNeXt)]
    for counter in ('epoch', 'iter'):  # as the runner does
        MessageHub.get_current_instance().update_info(counter, 0)
    received = {}
    watch(model, received)
    masks = (
        any(values_of(cfg.to_dict(), 'with_mask'))
        or 'train_dataloader' not in cfg
        or 'LoadPanopticAnnotations' in values_of(cfg.to_dict(), 'type')
    )  # with masks by default
    data = model.data_preprocessor(samples(model_cfg, size, 2, masks), True)
    losses = model(**data, mode='loss')
    loss, parts = model.parse_losses(losses)
    if not loss.requires_grad:
        raise ValueError('the loss does not depend on any parameter')
    loss.backward()
    if not torch.isfinite(loss):
        raise ValueError(f'the loss is {loss.item()}')
    for module in swapped:
        without = [key for key, param in module.named_parameters() if param.requires_grad and param.grad is None]
        if without and not cfg.get('find_unused_parameters'):
            raise ValueError(f'no gradient reached {without[:3]} of the backbone')
    model.zero_grad(set_to_none=True)
    model.eval()
    with torch.no_grad():
        batch = model.data_preprocessor(samples(model_cfg, size, 1, masks, training=False), False)
        outputs = model(**batch, mode='predict')
    if not len(outputs):
        raise ValueError('nothing was predicted')
    return received, {name: value.item() for name, value in parts.items()}


def _fewer_regions(cfg: Any) -> None:
    """Cut the numbers of sampled regions and proposals, which cost most of the time."""
    if isinstance(cfg, dict):
        for key, most in (('num', 32), ('max_per_img', 20), ('nms_pre', 100)):
            if isinstance(cfg.get(key), int) and cfg[key] > most and (key != 'max_per_img' or 'nms' in cfg):
                cfg[key] = most
    for item in cfg.values() if isinstance(cfg, dict) else cfg if isinstance(cfg, (list, tuple)) else ():
        _fewer_regions(item)


def watch(model: nn.Module, received: dict[str, list]) -> None:
    """Record the heights and widths of the feature maps that modules outside of backbones get first."""

    def hook_of(name):
        def hook(module, args, kwargs):
            if hasattr(module, '_transform_inputs'):  # of mmseg: a head takes what its in_index says
                try:
                    args = (module._transform_inputs(args[0]),)
                except Exception:
                    return
            maps = [list(value.shape[-2:]) for value in _tensors([args, kwargs]) if value.ndim == 4]
            if maps:
                received.setdefault(name, maps)

        return hook

    def output_hook_of(name):
        def hook(module, args, output):
            received.setdefault(f'{name} gives', [list(value.shape[-2:]) for value in _tensors(output)])

        return hook

    for name, module in model.named_modules():
        parts = name.split('.')
        is_in_list = parts[0] == 'neck' and len(parts) > 1 and parts[1].isdigit()
        is_backbone = any('backbone' in part for part in parts)
        if not name or len(parts) - is_in_list > 3 or is_backbone or parts[0] == 'data_preprocessor':
            continue
        module.register_forward_pre_hook(hook_of(name), with_kwargs=True)
        if isinstance(module, PyramidAdapter):
            received[f'{parts[0] if parts[-1] == "0" else name} adapted'] = []
        if parts[-1] == 'neck':
            module.register_forward_hook(output_hook_of(name))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def compare(received: dict[str, list], found: dict[str, list], size: int) -> None:
    """Raise where a neck or head gets features of other strides than before, or is not reached any more.

    A neck may lose the first features where it did not use them (its layers have to receive what they did), and a neck
    that made a pyramid may go.
    """
    for name, maps in received.items():
        new_maps = found.get(name)
        is_neck = name.removesuffix('.0').endswith('neck')
        if is_neck and f'{name} adapted' in found:
            new_maps = found.get(f'{name}.1', maps)
        if new_maps is None:
            parts = name.split('.')
            part = parts[1] if parts[0] == 'detector' else parts[0]
            is_reached = any(part in other.split('.') for other in found)
            if 'neck' not in part and not is_reached:
                raise ValueError(f'{name} received {maps} and now nothing in {part} does')
            continue
        if is_neck and any(other.startswith(f'{name}.') for other in received):
            maps = maps[max(len(maps) - len(new_maps), 0) :]
        if len(maps) != len(new_maps) or not all(same_stride(*pair, size) for pair in zip(maps, new_maps)):
            raise ValueError(f'{name} received {maps} and now {new_maps}')


def same_stride(before: list[int], after: list[int], size: int) -> bool:
    """Equal height and width; one position more or less where the old one was no whole part of the image."""
    return all(a == b or (size % a and abs(a - b) <= 1) for a, b in zip(before, after))


def samples(model_cfg: dict, size: int, count: int, masks: bool, training: bool = True) -> dict:
    """A batch of noise with two objects an image, in the layout that the model's data set gives."""
    kind, preprocessor = model_cfg['type'], model_cfg.get('data_preprocessor') or {}
    classes = list(values_of(model_cfg, 'num_classes'))
    if 'decode_head' in model_cfg or kind.endswith(('EncoderDecoder', 'DepthEstimator')):
        return _segmentation(min(classes, default=2), size, count, len(preprocessor.get('mean') or [0] * 3))
    classes = min([n for n in classes if isinstance(n, int) and n > 0], default=1)
    if preprocessor.get('type') == 'MultiBranchDataPreprocessor' and training:
        branches = [_detection(classes, size, count, masks) for _ in range(3)]
        names = ('sup', 'unsup_teacher', 'unsup_student')
        return dict(
            inputs={name: branch['inputs'] for name, branch in zip(names, branches)},
            data_samples={name: branch['data_samples'] for name, branch in zip(names, branches)},
        )
    if preprocessor.get('type') == 'TrackDataPreprocessor' and not (preprocessor.get('use_det_processor') and training):
        return _tracking(classes, size, count, masks)
    if preprocessor.get('type') == 'ReIDDataPreprocessor':
        from mmdet.structures import ReIDDataSample

        return dict(
            inputs=[_image(size) for _ in range(count)],
            data_samples=[ReIDDataSample().set_gt_label(i % 2) for i in range(count)],
        )
    batch = _detection(classes, size, count, masks)
    if 'roi_head' in model_cfg and not model_cfg.get('rpn_head'):
        corners = torch.stack([sample.gt_instances.bboxes.tensor for sample in batch['data_samples']])
        for sample, boxes in zip(batch['data_samples'], corners):
            proposals = boxes.repeat(8, 1) + torch.arange(16)[:, None] % 5
            sample.proposals = InstanceData(bboxes=proposals, scores=torch.ones(16))
    return batch


def values_of(value: Any, key: str) -> Iterator[Any]:
    if isinstance(value, dict):
        for name, item in value.items():
            if name == key:
                yield item
            yield from values_of(item, key)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from values_of(item, key)


def _image(size: int, channels: int = 3) -> Tensor:
    return torch.randint(0, 256, (channels, size, size), dtype=torch.uint8)


def _meta(size: int, number: int) -> dict:
    return dict(
        img_id=number,
        img_path='',
        img_shape=(size, size),
        ori_shape=(size, size),
        pad_shape=(size, size),
        batch_input_shape=(size, size),
        scale_factor=(1.0, 1.0),
        flip=False,
        flip_direction=None,
        border=(1.0, 1.0, 1.0, 1.0),
        homography_matrix=np.eye(3, dtype=np.float32),
        text=('cat', 'dog'),
        custom_entities=True,
    )


def _detection(classes: int, size: int, count: int, with_masks: bool) -> dict:
    from mmdet.structures import DetDataSample
    from mmdet.structures.bbox import HorizontalBoxes
    from mmdet.structures.mask import BitmapMasks

    batch = dict(inputs=[_image(size) for _ in range(count)], data_samples=[])
    corners = np.array([[0.1, 0.15, 0.6, 0.7], [0.4, 0.3, 0.9, 0.95]]) * size
    masks = np.zeros((2, size, size), np.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, corners.astype(int)):
        mask[y1:y2, x1:x2] = 1
    for number in range(count):
        sample = DetDataSample(metainfo=_meta(size, number))
        labels = torch.arange(2) % classes
        sample.gt_instances = InstanceData(
            bboxes=HorizontalBoxes(corners, dtype=torch.float32), labels=labels, instances_ids=torch.tensor([100, 101])
        )
        sample.ignored_instances = InstanceData(
            bboxes=HorizontalBoxes(torch.zeros(0, 4)), labels=torch.zeros(0, dtype=torch.long)
        )
        if with_masks:
            sample.gt_instances.masks = BitmapMasks(masks, size, size)
            sample.ignored_instances.masks = BitmapMasks(masks[:0], size, size)
        sample.gt_sem_seg = PixelData(sem_seg=torch.randint(0, min(classes, 255), (1, size, size), dtype=torch.uint8))
        batch['data_samples'].append(sample)
    return batch


def _tracking(classes: int, size: int, count: int, masks: bool, frames: int = 2) -> dict:
    from mmdet.structures import TrackDataSample

    batch = dict(inputs=[], data_samples=[])
    for _ in range(count):
        video = _detection(classes, size, frames, masks)
        sample = TrackDataSample(metainfo=dict(key_frames_inds=[0], ref_frames_inds=[1]))
        for number, frame in enumerate(video['data_samples']):
            frame.set_metainfo(dict(frame_id=number, ori_video_length=frames, is_video_data=True))
            for part in (frame.gt_instances, frame.ignored_instances):
                part.bboxes = part.bboxes.tensor
        sample.video_data_samples = video['data_samples']
        batch['inputs'].append(torch.stack(video['inputs']))
        batch['data_samples'].append(sample)
    return batch


def _segmentation(classes: int, size: int, count: int, channels: int) -> dict:
    from mmseg.structures import SegDataSample

    batch = dict(inputs=[_image(size, channels) for _ in range(count)], data_samples=[])
    for number in range(count):
        sample = SegDataSample(metainfo=_meta(size, number))
        sample.gt_sem_seg = PixelData(data=torch.randint(0, classes, (1, size, size)))
        sample.gt_edge_map = PixelData(data=torch.randint(0, 2, (1, size, size), dtype=torch.uint8))
        sample.gt_depth_map = PixelData(data=torch.rand(1, size, size))
        batch['data_samples'].append(sample)
    return batch


def write(path: Path, results: dict) -> None:
    part = path.with_name(path.name + '.part')
    part.write_text(json.dumps(results, indent=0) + '\n')
    part.replace(path)


def table(models: dict[str, dict]) -> str:
    """Configs by family and outcome, and the reason of everything that does not run."""
    counts = {}
    for model in models.values():
        for config in model['configs']:
            for name in (family(config), config.split('::')[0]):
                counts.setdefault(name, collections.Counter())[model['outcome']] += 1
    rows = ['| | ' + ' | '.join(OUTCOMES) + ' |', '|---|' + '---|' * len(OUTCOMES)]
    for name in sorted(counts, key=lambda name: (name in TOOLKITS, name)):
        rows.append(f'| {name} | ' + ' | '.join(str(counts[name][outcome]) for outcome in OUTCOMES) + ' |')
    rows.append('')
    rows += [
        f'- {model["outcome"]}: `{model["configs"][0]}` ({len(model["configs"])} configs): {model["reason"]}'
        for model in models.values()
        if model['outcome'] != 'runs'
    ]
    rows = [_anywhere(row) for row in rows]
    return '\n'.join(rows)


def _anywhere(text: str) -> str:
    """In one line, without the folders of this machine."""
    text = ' '.join(text.split(', the current sys.path')[0].split())
    return re.sub(r'(?<![\w:/.])/(?:[\w.+-]+/)+', '', text)


def publish(path: Path, baseline: dict, results: dict) -> None:
    """A summary of both runs as JSON, and as a table beside it."""
    models = []
    for key, before in baseline['models'].items():
        after = results['models'].get(key, dict(outcome='not done', seconds=0))
        models.append(
            dict(
                configs=before['configs'],
                before=before['outcome'],
                after=after['outcome'],
                seconds=after['seconds'],
                reason=_anywhere(after.get('reason') or before.get('reason', '')),
            )
        )
    without = {name: _anywhere(reason) for name, reason in baseline['without_model'].items()}
    write(path, dict(settings=results['settings'], without_model=without, models=models))
    runs = {key for key, before in baseline['models'].items() if before['outcome'] == 'runs'}
    lines = [
        '# Swapping the backbone of every model of the zoos',
        '',
        'Made by `tools/dev/swap_sweep.py`: swap, build, one loss with its backward pass and one prediction, at small '
        'size. Counts are configs; configs that differ in nothing but weights were run once.',
        '',
        f"mmcv's operators were {results['settings']['operators']}.",
        '',
    ]
    for toolkit in TOOLKITS:
        count = collections.Counter()
        for key in runs:
            for config in baseline['models'][key]['configs']:
                if config.startswith(f'{toolkit}::'):
                    count['all'] += 1
                    count[results['models'].get(key, {}).get('outcome', 'not done')] += 1
        lines.append(
            f'- {toolkit}: of {count["all"]} configs that run as they are, {count["runs"]} '
            f'({100 * count["runs"] / max(count["all"], 1):.1f} %) run with ConvNeXt, {count["refused"]} are '
            f'refused, {count["fails"]} fail'
        )
    not_run = {key: model for key, model in baseline['models'].items() if key not in runs}
    path.with_suffix('.md').write_text(
        '\n'.join(
            [
                *lines,
                '',
                '## With ConvNeXt',
                '',
                table(results['models']),
                '',
                '## Models that do not run here as they are',
                '',
                table(not_run),
                '',
            ]
        )
    )


if __name__ == '__main__':
    main()
