"""With nothing changed by the user the fused block runs: under every recipe and every way of training."""

import csv
import os
from pathlib import Path

import pytest
import torch
from helpers import ROOT
from mmengine.config import Config
from mmengine.model import ExponentialMovingAverage, MMFullyShardedDataParallel
from test_distributed import free_port
from torch import distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from convnext_dense import ConvNeXt, swap_backbone
from convnext_dense.archs import resolve_arch
from convnext_dense.engine.fsdp import wrap_blocks
from convnext_dense.models.block import Block

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')

with (ROOT / 'tests/reference/recipes.csv').open(newline='') as file:
    RECIPES = [row['config'] for row in csv.DictReader(file) if 'convnext' in row['config']]
MICRO = dict(depths=[1, 1, 2, 1], channels=[8, 16, 16, 16])


def count_fused(model: nn.Module, training: bool, amp: bool = False) -> tuple[int, int]:
    """Calls of blocks and calls of fused blocks in one step, or in one prediction."""
    calls = dict(all=0, fused=0)
    fused, forward = Block.fused, Block.forward

    def counted_fused(self, *args):
        calls['fused'] += 1
        return fused(self, *args)

    def counted_forward(self, x):
        calls['all'] += 1
        return forward(self, x)

    Block.fused, Block.forward = counted_fused, counted_forward
    try:
        model.train(training)
        x = torch.randn(2, 3, 32, 32)
        with torch.set_grad_enabled(training), torch.autocast('cpu', torch.bfloat16, enabled=amp):
            outputs = model(x)
        if training:
            sum(out.float().square().mean() for out in outputs).backward()
    finally:
        Block.fused, Block.forward = fused, forward
    return calls['all'], calls['fused']


def test_there_are_thirteen_recipes():
    assert len(RECIPES) == 13


@pytest.mark.parametrize('recipe', RECIPES)
def test_recipes(recipe):
    """The backbone of a recipe, as its config builds it but for the width."""
    options = dict(Config.fromfile(ROOT / 'configs' / f'{recipe}.py').model.backbone)
    depths, _ = resolve_arch(options.pop('arch'))
    assert options.pop('type') == 'ConvNeXt' and options.pop('init_cfg')
    model = ConvNeXt(dict(depths=depths, channels=(4, 4, 8, 8)), **options)
    average = ExponentialMovingAverage(model).module
    for training in (True, False):
        for amp in (False, True):
            assert count_fused(model, training, amp) == (sum(depths), sum(depths))
    assert count_fused(average, training=False) == (sum(depths), sum(depths))


def in_wrappers(_: int, port: int, log: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group('gloo', init_method=f'tcp://127.0.0.1:{port}', rank=0, world_size=1)
    lines = []
    for memory in (None, 'default', 'lean', 'checkpoint'):
        options = dict(memory=memory, drop_path_rate=0.2)
        wrapped = [
            DistributedDataParallel(ConvNeXt(MICRO, **options)),
            MMFullyShardedDataParallel(
                ConvNeXt(MICRO, **options), auto_wrap_policy=wrap_blocks, device_id=torch.device('cpu')
            ),
        ]
        for model in wrapped:
            for training in (True, False):
                for amp in (False, True):
                    lines.append(f'{type(model).__name__} {count_fused(model, training, amp)}')
    Path(log).write_text('\n'.join(lines))
    os._exit(0)  # gloo's threads were seen to hang while Python tears wrapped models down


def test_in_wrappers(tmp_path):
    multiprocessing.spawn(in_wrappers, (free_port(), str(tmp_path / 'log')), nprocs=1)
    lines = (tmp_path / 'log').read_text().splitlines()
    expected = ['DistributedDataParallel (5, 5)'] * 4 + ['MMFullyShardedDataParallel (5, 5)'] * 4
    assert lines == expected * 4


def test_the_teacher_of_soft_teacher_is_up_to_date():
    """mmdet's MeanTeacherHook changes the teacher through ``.data``, after the teacher has predicted in eval()."""
    from mmdet.engine.hooks import MeanTeacherHook
    from mmengine.registry import MODELS, DefaultScope

    swapped = swap_backbone('mmdet::soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco.py', MICRO)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(swapped.model)
    hook = MeanTeacherHook(momentum=0.5)
    x = torch.randn(1, 3, 64, 64)
    teacher = model.teacher.backbone
    assert isinstance(teacher, ConvNeXt) and not teacher.training
    seen = []
    for _ in range(2):
        with torch.no_grad():
            found = teacher(x)[3]
            for block in (module for stage in teacher.stages for module in stage):
                block.act = nn.Sequential(nn.GELU())  # steps aside
            plain = teacher(x)[3]
            for block in (module for stage in teacher.stages for module in stage):
                block.act = nn.GELU()
        torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-5)
        seen.append(found)
        for param in model.student.backbone.parameters():
            param.data.add_(torch.randn_like(param))
        hook.momentum_update(model, 1)
    assert not torch.allclose(*seen, atol=1e-2)
