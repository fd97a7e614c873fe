"""Several processes: DistributedDataParallel over every choice of outputs and frozen stages, and the launch scripts."""

import copy
import itertools
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import ROOT, kill_all
from mmengine.config import Config
from mmengine.model import MMFullyShardedDataParallel
from mmengine.registry import MODELS, init_default_scope
from torch import distributed, multiprocessing
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.nn.parallel import DistributedDataParallel

from convnext_dense import ConvNeXt, ConvNeXtIsotropic, ConvNeXtLayerDecayConstructor, ConvNeXtRoadmap, UserError
from convnext_dense.engine.fsdp import ConvNeXtFSDPStrategy, whole_parameters, with_sharded_scaler, wrap_blocks
from convnext_dense.engine.load_hook import fit_checkpoint
from convnext_dense.models.block import Block
from convnext_dense.models.roadmap import STEPS

MASK_RCNN = ROOT / 'configs/mask_rcnn/convnext_digits.py'
UPERNET = ROOT / 'configs/upernet/convnext_digits.py'
MICRO = dict(depths=[1, 1, 1, 1], channels=[4, 8, 8, 8])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def run_rank(rank: int, work: Callable[[int], object], port: int, log: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group('gloo', init_method=f'tcp://127.0.0.1:{port}', rank=rank, world_size=2)
    (log / str(rank)).write_text(str(work(rank)))
    distributed.barrier()
    os._exit(0)  # gloo's threads were seen to hang while Python tears dozens of wrapped models down


def in_two_processes(work: Callable[[int], object], log: Path) -> list[str]:
    """What ``work`` returned in each of two processes that talk to each other, as text."""
    multiprocessing.spawn(run_rank, (work, free_port(), log), nprocs=2)
    return [(log / str(rank)).read_text() for rank in range(2)]


def every_combination(rank: int) -> int:
    done = 0
    models = [ConvNeXtIsotropic(dict(depth=2, channels=8), drop_path_rate=0.9)]
    # At width 4, convolutions of torch 2.13 were seen to damage the heap on a processor with AVX2 alone.
    for step in STEPS:
        models.append(ConvNeXtRoadmap(step, width=8, depths=(1, 1, 1, 1), drop_path_rate=0.9))
    for model in models:
        wrapped = DistributedDataParallel(model, find_unused_parameters=False).train()
        for seed in range(2):  # a parameter without gradient is complained of in the next iteration
            torch.manual_seed(10 * seed + rank)
            sum(out.square().mean() for out in wrapped(torch.randn(2, 3, 32, 32))).backward()
        grads = torch.cat([p.grad.flatten() for p in model.parameters()])
        both = [torch.empty_like(grads) for _ in range(2)]
        distributed.all_gather(both, grads)
        assert torch.equal(*both), model
        done += 1
    for count in range(1, 5):
        for out_indices in itertools.combinations(range(4), count):
            for frozen in range(out_indices[-1] + 2):
                torch.manual_seed(0)
                model = ConvNeXt(MICRO, out_indices=out_indices, frozen_stages=frozen, drop_path_rate=0.9)
                wrapped = DistributedDataParallel(model, find_unused_parameters=False).train()
                for step in range(3):  # a parameter without gradient is complained of in the next iteration
                    torch.manual_seed(10 * step + rank)
                    sum(out.square().mean() for out in wrapped(torch.randn(1, 3, 32, 32))).backward()
                grads = torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])
                both = [torch.empty_like(grads) for _ in range(2)]
                distributed.all_gather(both, grads)
                assert torch.equal(*both), (out_indices, frozen)
                done += 1
    return done


def test_no_unused_parameters(tmp_path):
    # Each of the 2**last subsets that end with stage `last` takes last + 2 numbers of frozen stages. Before them: the
    # isotropic model and the 17 steps of the roadmap.
    expected = str(1 + 17 + sum(2**last * (last + 2) for last in range(4)))
    assert in_two_processes(every_combination, tmp_path) == [expected, expected]


def launch(script: str, *args: object, data: Path, page: bool = False) -> subprocess.Popen:
    """Start a launch script; a training without the page at its end, unless ``page`` is set."""
    if script == 'dist_train.sh' and not page:
        args = (*args, '--no-report')
    env = dict(
        os.environ, PYTHON=sys.executable, PORT=str(free_port()), OMP_NUM_THREADS='1', CONVNEXT_DENSE_DATA=str(data)
    )
    return subprocess.Popen(
        [str(ROOT / 'tools' / script), *map(str, args)],
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


SHORT = ('--cfg-options', 'train_cfg.max_epochs=1', 'train_cfg.val_interval=1')


@pytest.mark.slow
def test_two_processes_train_and_test_like_one(digits, tmp_path, tool):
    process = launch('dist_train.sh', MASK_RCNN, 2, '--work-dir', tmp_path, *SHORT, data=digits)
    text, _ = process.communicate(timeout=400)
    assert process.returncode == 0, text
    assert len(re.findall(r'layer decay: ', text)) == 1, 'the first process alone writes'
    trained = json.loads((tmp_path / 'metrics.json').read_text())
    checkpoint = (tmp_path / 'last_checkpoint').read_text()
    process = launch('dist_test.sh', MASK_RCNN, checkpoint, 2, '--work-dir', tmp_path / 'two', data=digits)
    text, _ = process.communicate(timeout=400)
    assert process.returncode == 0, text
    message, _ = tool('test', MASK_RCNN, checkpoint, '--work-dir', tmp_path / 'one', data=digits)
    assert message is None
    one, two = (json.loads((tmp_path / folder / 'metrics.json').read_text()) for folder in ('one', 'two'))
    assert {k: v for k, v in one.items() if k.startswith('coco/')} == {
        k: v for k, v in two.items() if k.startswith('coco/')
    }
    assert set(trained) == set(one)


@pytest.mark.slow
def test_two_processes_write_one_log_and_one_page(digits, tmp_path):
    """``--track tensorboard``: the first process alone writes, and none waits for the page at the end."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    many = ('default_hooks.logger.interval=1', 'train_dataloader.batch_size=4')
    options = ('--work-dir', tmp_path, '--track', 'tensorboard', *SHORT, *many)
    process = launch('dist_train.sh', MASK_RCNN, 2, *options, data=digits, page=True)
    text, _ = process.communicate(timeout=400)
    assert process.returncode == 0, text
    (events,) = tmp_path.rglob('events.out.tfevents.*')
    written = EventAccumulator(str(events))
    written.Reload()
    (scalars,) = tmp_path.glob('*/vis_data/scalars.json')
    rows = [json.loads(line) for line in scalars.read_text().splitlines()]
    losses = {row['step']: row['loss'] for row in rows if 'loss' in row}
    assert list(losses) == [1, 2, 3, 4]
    assert {row.step: row.value for row in written.Scalars('loss')} == pytest.approx(losses)
    metrics = json.loads((tmp_path / 'metrics.json').read_text())
    (mean_precision,) = written.Scalars('coco/bbox_mAP')
    assert mean_precision.value == pytest.approx(metrics['coco/bbox_mAP'])
    assert text.count('writing a page about this training') == 1
    assert f'written to {tmp_path}/report.html' in text and (tmp_path / 'report.html').is_file()


@pytest.mark.slow
@pytest.mark.parametrize('seed', range(3))
def test_killed_processes_resume(seed, digits, tmp_path):
    """All processes killed at some iteration behind the first checkpoint; the rate and the state go on."""
    options = (
        '--work-dir',
        tmp_path,
        '--cfg-options',
        'train_cfg.max_epochs=4',
        'train_cfg.val_interval=4',
        'default_hooks.logger.interval=1',
        'train_dataloader.batch_size=4',
        'randomness.seed=0',
    )
    process = launch('dist_train.sh', MASK_RCNN, 2, *options, data=digits)
    epoch, iteration = 2 + seed % 2, 1 + seed
    rates = {}
    for line in process.stdout:
        found = re.search(r'Epoch\(train\)\s+\[(\d)\]\[(\d)/4\]\s+base_lr: (\S+)', line)
        if found:
            rates[found[1], found[2]] = found[3]
            if (int(found[1]), int(found[2])) >= (epoch, iteration):
                break
    kill_all(process)
    saved = torch.load((tmp_path / 'last_checkpoint').read_text())
    resumed = launch('dist_train.sh', MASK_RCNN, 2, '--resume', *options, data=digits)
    text, _ = resumed.communicate(timeout=400)
    assert resumed.returncode == 0, text
    assert f'resumed epoch: {saved["meta"]["epoch"]}, iter: {saved["meta"]["iter"]}' in text
    again = {(e, i): lr for e, i, lr in re.findall(r'Epoch\(train\)\s+\[(\d)\]\[(\d)/4\]\s+base_lr: (\S+)', text)}
    assert ('1', '1') not in again and ('4', '4') in again
    for step in set(again) & set(rates):
        assert again[step] == rates[step], 'the schedule goes on where it was'
    final = torch.load(tmp_path / 'epoch_4.pth')
    steps = {int(state['step']) for state in final['optimizer']['state'].values()}
    assert steps == {16}, 'the optimizer went on counting'
    assert (tmp_path / 'metrics.json').exists()


def settings(model: torch.nn.Module) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay of each parameter, by its name in the model that is not split."""
    constructor = ConvNeXtLayerDecayConstructor(
        dict(optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.5)), dict(decay_rate=0.5)
    )
    names = {id(param): name.replace('_fsdp_wrapped_module.', '') for name, param in model.named_parameters()}
    return {
        names[id(param)]: (group['lr'], group['weight_decay'])
        for group in constructor.param_groups(model)
        for param in group['params']
    }


def sharded(rank: int) -> None:
    expected = settings(ConvNeXt(MICRO))
    options = dict(auto_wrap_policy=wrap_blocks, device_id=torch.device('cpu'))
    model = MMFullyShardedDataParallel(ConvNeXt(MICRO), **options)
    assert sum(isinstance(module, FullyShardedDataParallel) for module in model.modules()) == 4 + 1
    assert settings(model) == expected
    assert {decay for _, decay in expected.values()} == {0.0, 0.5}
    with pytest.raises(UserError, match='use_orig_params=True'):
        settings(MMFullyShardedDataParallel(ConvNeXt(MICRO), use_orig_params=False, **options))


def test_layer_decay_of_shards(tmp_path):
    assert in_two_processes(sharded, tmp_path) == ['None', 'None']


class Holder(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = ConvNeXt(MICRO)
        self.head = torch.nn.Conv2d(8, 2, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(image)[-1])


def load_into_shards(rank: int) -> None:
    torch.manual_seed(1)
    source = Holder()
    for param in source.parameters():
        torch.nn.init.normal_(param)
    others = {f'model.{name}'.replace('dwconv', 'depthwise_conv'): value for name, value in source.state_dict().items()}
    others = {re.sub(r'pwconv(\d)', r'pointwise_conv\1', name): value for name, value in others.items()}
    for units in ({Block}, {ConvNeXt}, {ConvNeXt, Block}):
        for state in (source.state_dict(), others):
            model = MMFullyShardedDataParallel(
                Holder(), auto_wrap_policy=ModuleWrapPolicy(units), device_id=torch.device('cpu')
            )
            checkpoint = {'state_dict': dict(state)}
            with whole_parameters(model):
                fit_checkpoint(model.module, checkpoint, whole_model=True)
            model.load_state_dict(checkpoint['state_dict'])
            with whole_parameters(model):
                for (name, param), expected in zip(model.named_parameters(), source.parameters(), strict=True):
                    assert torch.equal(param, expected), (units, name)


def test_shards_are_cut_out_of_what_was_fitted(tmp_path):
    """Whatever is a unit: blocks, the ConvNeXt, both; from files of our own and of another dialect."""
    assert in_two_processes(load_into_shards, tmp_path) == ['None', 'None']


def clipped_steps(rank: int) -> None:
    """Steps of a small model with plain torch in one process, and sharded, with the same gradients."""
    os.environ['LOCAL_RANK'] = str(rank)  # as torchrun does
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for clip_grad in (dict(max_norm=0.1), dict(max_norm=0.1, norm_type=3), dict(type='value', clip_value=1e-3)):
        torch.manual_seed(0)
        plain = Holder()
        strategy = ConvNeXtFSDPStrategy()
        model = strategy._wrap_model(copy.deepcopy(plain))
        config = dict(optimizer=dict(type='SGD', lr=1.0), clip_grad=clip_grad)
        wrapper = strategy.build_optim_wrapper(copy.deepcopy(config), model)
        for _ in range(2):
            wrapper.update_params(model(image).square().sum())
            plain.zero_grad()
            plain(image).square().sum().backward()
            if 'clip_value' in clip_grad:
                torch.nn.utils.clip_grad_value_(plain.parameters(), clip_grad['clip_value'])
            else:
                norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), **clip_grad)
                assert norm > 1, 'the gradient is clipped'
            with torch.no_grad():
                for param in plain.parameters():
                    if param.grad is not None:
                        param -= param.grad
        with whole_parameters(model):
            for (name, param), expected in zip(model.named_parameters(), plain.parameters(), strict=True):
                torch.testing.assert_close(param, expected, rtol=1e-4, atol=1e-6, msg=f'{clip_grad} {name}')
    with pytest.raises(UserError, match='takes max_norm and norm_type, not foreach'):
        strategy.build_optim_wrapper(dict(config, clip_grad=dict(max_norm=1, foreach=True)), model)


def test_shards_are_clipped_by_the_norm_of_the_whole_gradient(tmp_path):
    assert in_two_processes(clipped_steps, tmp_path) == ['None', 'None']


def test_losses_of_shards_are_scaled_alike():
    assert with_sharded_scaler(dict(type='AmpOptimWrapper', dtype='float16')) == dict(
        type='AmpOptimWrapper', dtype='float16', use_fsdp=True
    )
    for given in (dict(type='OptimWrapper'), dict(), dict(type='AmpOptimWrapper', use_fsdp=False)):
        assert with_sharded_scaler(given) == given


@pytest.mark.slow
def test_fully_sharded_equals_data_parallel(digits, tmp_path, tool, monkeypatch):
    """A segmentor, since a detector draws other regions as soon as rounding decides about a proposal."""
    group_norm = dict(type='GN', num_groups=4)  # a batch norm has statistics of its own in every process
    head = dict(norm_cfg=group_norm, dropout_ratio=0.0)
    heads = dict(decode_head=head, auxiliary_head=head)
    plain, leaf = tmp_path / 'plain.py', tmp_path / 'fsdp.py'
    plain.write_text(f'_base_ = {str(UPERNET)!r}\nmodel = {heads}\n')
    leaf.write_text(f'_base_ = [{str(plain)!r}, {str(ROOT / "configs/_base_/fsdp.py")!r}]\n')
    init_default_scope('mmseg')
    start = tmp_path / 'start.pth'  # mmengine's two runners draw different initial weights from one seed
    monkeypatch.setenv('CONVNEXT_DENSE_DATA', str(digits))
    torch.manual_seed(0)
    torch.save(dict(state_dict=MODELS.build(Config.fromfile(plain).model).state_dict()), start)
    # AdamW makes rounding grow, and hides by which factor a gradient was clipped.
    sgd = ('optim_wrapper.optimizer.type=SGD', 'optim_wrapper.optimizer.lr=0.1', 'optim_wrapper.optimizer.momentum=0.9')
    steps = (
        'optim_wrapper.clip_grad.max_norm=1',
        'train_cfg.val_interval=4',
        'default_hooks.logger.interval=1',
        'default_hooks.checkpoint.interval=4',
    )
    options = (*sgd, *steps, 'train_dataloader.batch_size=4', 'randomness.seed=0')
    losses = {}
    for config in (plain, leaf):
        work_dir = tmp_path / config.stem
        process = launch(
            'dist_train.sh',
            config,
            2,
            '--work-dir',
            work_dir,
            '--cfg-options',
            'train_cfg.max_iters=8',
            f'load_from={start}',
            *options,
            data=digits,
        )
        text, _ = process.communicate(timeout=400)
        assert process.returncode == 0, text
        losses[config] = [float(loss) for loss in re.findall(r' loss: (\S+) ', text)]
        assert re.search(r'outside +0.1 +55 +120 +4,113,502', text), 'no shard counts as a vector'
    assert len(losses[leaf]) == 8
    assert losses[leaf] == pytest.approx(losses[plain], rel=2e-4)
    assert losses[leaf][-1] < losses[leaf][0] - 0.1
    process = launch(
        'dist_train.sh',
        leaf,
        2,
        '--resume',
        '--work-dir',
        tmp_path / 'fsdp',
        '--cfg-options',
        'train_cfg.max_iters=12',
        *options,
        data=digits,
    )
    text, _ = process.communicate(timeout=400)
    assert process.returncode == 0, text
    assert 'iter: 8' in text
    trained = json.loads((tmp_path / 'fsdp/metrics.json').read_text())
    message, _ = tool('test', plain, tmp_path / 'fsdp/iter_12.pth', '--work-dir', tmp_path / 'one', data=digits)
    assert message is None
    tested = json.loads((tmp_path / 'one/metrics.json').read_text())
    assert {key: trained[key] for key in ('mIoU', 'aAcc', 'mAcc')} == {
        key: tested[key] for key in ('mIoU', 'aAcc', 'mAcc')
    }


def test_slurm_script_asks_for_the_gpus_and_passes_the_rest(tmp_path):
    srun = tmp_path / 'srun'
    srun.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    srun.chmod(0o755)
    env = dict(os.environ, PATH=f'{tmp_path}:{os.environ["PATH"]}', GPUS='16', PYTHON='python', SRUN_ARGS='--mem 64G')
    done = subprocess.run(
        [ROOT / 'tools/slurm_train.sh', 'part', 'job', 'leaf.py', '--amp'],
        env=env,
        text=True,
        capture_output=True,
        check=True,
    )
    assert done.stdout.splitlines() == [
        '-p',
        'part',
        '--job-name=job',
        '--gres=gpu:8',
        '--ntasks=16',
        '--ntasks-per-node=8',
        '--cpus-per-task=5',
        '--kill-on-bad-exit=1',
        '--mem',
        '64G',
        'python',
        '-u',
        str(ROOT / 'tools/train.py'),
        'leaf.py',
        '--launcher',
        'slurm',
        '--amp',
    ]
