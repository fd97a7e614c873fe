"""Prepared inference inside mmengine's loops, beside hooks that exchange the weights."""

import pytest
import torch
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.hooks import EMAHook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader

from convnext_dense import ConvNeXt
from convnext_dense.engine.inference_hook import PrepareForInferenceHook
from convnext_dense.models.block import Block

MICRO = dict(depths=[1, 1, 1, 1], channels=[8, 8, 8, 8])


class Toy(BaseModel):
    """Trains a ConvNeXt to give 1; in validation, notes what it gives and what the plain blocks would give."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = ConvNeXt(MICRO, layer_scale_init_value=1.0)
        self.validated = []

    def forward(self, image, mode='tensor'):
        found = self.backbone(image)[3]
        if mode == 'loss':
            return dict(loss=(found - 1).square().mean())
        blocks = [module for module in self.modules() if isinstance(module, Block)]
        prepared = [block._prepared is not None for block in blocks]
        fused, Block.fused = Block.fused, lambda block, x, dtype, params: block.plain(x)
        expected = self.backbone(image)[3]
        Block.fused = fused
        self.validated.append((found, expected, prepared))
        return [found]


class NoMetric(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        return {}


@pytest.mark.parametrize('order', ['ours first', 'ours last'])
def test_every_validation_sees_the_averages(order, tmp_path):
    images = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    loader = DataLoader(images, batch_size=2, collate_fn=lambda rows: dict(image=torch.stack(rows)))
    torch.manual_seed(0)
    model = Toy()
    states = []

    class Watch(EMAHook):
        """Notes whether blocks are prepared whenever the weights are exchanged or a checkpoint is written."""

        def _swap_ema_parameters(self):
            states.append([block._prepared for block in model.modules() if isinstance(block, Block)])
            super()._swap_ema_parameters()

        def before_save_checkpoint(self, runner, checkpoint):
            states.append([block._prepared for block in model.modules() if isinstance(block, Block)])
            super().before_save_checkpoint(runner, checkpoint)

    runner = Runner(
        model=model,
        work_dir=str(tmp_path),
        train_dataloader=loader,
        val_dataloader=loader,
        test_dataloader=loader,
        train_cfg=dict(by_epoch=True, max_epochs=3, val_interval=1),
        val_cfg=dict(),
        test_cfg=dict(),
        val_evaluator=Evaluator([NoMetric()]),
        test_evaluator=Evaluator([NoMetric()]),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.5)),
        log_level='ERROR',
    )
    runner.register_hook(Watch(momentum=0.3), priority='NORMAL')
    ours = PrepareForInferenceHook()
    runner.register_hook(ours, priority='VERY_HIGH' if order == 'ours first' else 'LOWEST')
    runner.train()
    runner.test()

    assert len(model.validated) == 12  # three batches in three validations and a test
    for found, expected, prepared in model.validated:
        assert prepared == [True] * 4
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    first, last = model.validated[0][0], model.validated[9][0]
    assert not torch.allclose(first, last, atol=1e-3)
    assert len(states) >= 8 + 3 and all(state == [None] * 4 for state in states)


def test_training_never_sees_prepared_blocks(tmp_path):
    model = nn.ModuleDict(dict(backbone=ConvNeXt(MICRO)))
    hook = PrepareForInferenceHook()

    class FakeRunner:
        pass

    runner = FakeRunner()
    runner.model, runner.val_dataloader = model, [0, 1]
    hook.before_val_iter(runner, 0)  # a validation that ends early
    assert all(block._prepared == {} for block in model.modules() if isinstance(block, Block))
    hook.before_train_iter(runner, 0)
    assert all(block._prepared is None for block in model.modules() if isinstance(block, Block))
