"""bfloat16 on CPUs: the optimizer wrapper in whole training runs, and beside fp32."""

import copy
import json

import pytest
import torch
from helpers import ROOT
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import OPTIM_WRAPPERS, DefaultScope
from torch import nn

from convnext_dense import CPUAmpOptimWrapper, UserError

MASK_RCNN = ROOT / 'configs/mask_rcnn/convnext_digits.py'
UPERNET = ROOT / 'configs/upernet/convnext_digits.py'
IN_PROCESS = tuple(
    f'{split}_dataloader.{option}'
    for split in ('train', 'val', 'test')
    for option in ('num_workers=0', 'persistent_workers=False')
)
needs_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason='mixed precision runs on the GPU here')


def wrapper(model: nn.Module, **options) -> CPUAmpOptimWrapper:
    return OPTIM_WRAPPERS.build(
        dict(type='CPUAmpOptimWrapper', optimizer=torch.optim.AdamW(model.parameters(), 1e-3), **options)
    )


@needs_cpu
@pytest.mark.parametrize(
    'config, run',
    [
        (MASK_RCNN, ('train_cfg.max_epochs=1', 'train_cfg.val_interval=1')),
        (UPERNET, ('train_cfg.max_iters=4', 'train_cfg.val_interval=4', 'default_hooks.checkpoint.interval=4')),
    ],
)
def test_amp_without_a_gpu(config, run, digits, tmp_path, tool):
    message, text = tool(
        'train', config, '--amp', '--work-dir', tmp_path, '--cfg-options', *run, *IN_PROCESS, data=digits
    )
    assert message is None
    assert 'no GPU here: mixed precision in bfloat16 by CPUAmpOptimWrapper\n' in text
    assert json.loads((tmp_path / 'metrics.json').read_text())
    checkpoint = torch.load((tmp_path / 'last_checkpoint').read_text(), weights_only=True)
    assert {value.dtype for value in checkpoint['state_dict'].values() if value.is_floating_point()} == {torch.float32}
    assert 'loss_scaler' not in checkpoint['optimizer']  # AmpOptimWrapper refuses an empty one


def test_losses_and_gradients_are_near_fp32():
    """Of Mask R-CNN, whose RoIAlign cannot take bfloat16; what the context changes in the model is undone."""
    from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    cfg = Config.fromfile(MASK_RCNN)
    with DefaultScope.overwrite_default_scope('mmdet'):
        torch.manual_seed(0)
        model = MODELS.build(cfg.model).train()
        for module in model.modules():
            if hasattr(module, 'rate'):
                module.rate = 0.0  # no stochastic depth
        sample = DetDataSample(
            metainfo=dict(
                img_shape=(128, 128),
                pad_shape=(128, 128),
                batch_input_shape=(128, 128),
                ori_shape=(128, 128),
                scale_factor=(1.0, 1.0),
            )
        )
        masks = torch.zeros(1, 128, 128, dtype=torch.uint8)
        masks[0, 20:90, 30:100] = 1
        sample.gt_instances = InstanceData(
            bboxes=torch.tensor([[30.0, 20, 100, 90]]),
            labels=torch.tensor([3]),
            masks=BitmapMasks(masks.numpy(), 128, 128),
        )
        sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
        image = torch.randn(1, 3, 128, 128)
        seen, found = [], {}
        extractor = next(module for module in model.modules() if isinstance(module, SingleRoIExtractor))
        for layer in extractor.roi_layers:
            layer.register_forward_hook(lambda module, args, output: seen.append((args[0].dtype, output.dtype)))
        model.rpn_head.rpn_conv.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
        before = {name: (len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in model.named_modules()}
        for name in ('CPUAmpOptimWrapper', 'OptimWrapper'):
            optimizer = OPTIM_WRAPPERS.build(dict(type=name, optimizer=torch.optim.AdamW(model.parameters())))
            torch.manual_seed(1)
            with optimizer.optim_context(model):
                losses = model.loss(image, [copy.deepcopy(sample)])
            loss, _ = model.parse_losses(losses)
            model.zero_grad()
            # The other losses are of proposals, of which the NMS chooses others after the least change.
            optimizer.backward(sum(losses['loss_rpn_cls']) + sum(losses['loss_rpn_bbox']))
            found[name] = loss.item(), model.backbone.downsample_layers[0][0].weight.grad.clone()
            if name == 'CPUAmpOptimWrapper':
                half = list(seen)
    assert torch.bfloat16 in half  # a convolution
    assert {pair for pair in half if isinstance(pair, tuple)} == {(torch.float32, torch.float32)}
    assert {name: (len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in model.named_modules()} == before
    (loss, grad), (expected, expected_grad) = found.values()
    assert loss != expected and loss == pytest.approx(expected, rel=0.02)
    assert torch.nn.functional.cosine_similarity(grad.flatten(), expected_grad.flatten(), 0) > 0.98


def test_a_failing_operator_leaves_autocast_as_it_was():
    from mmcv.ops import RoIAlign

    model = nn.Sequential(RoIAlign(7))
    with pytest.raises(TypeError), wrapper(nn.Linear(2, 2)).optim_context(model):
        model[0](torch.randn(1, 4, 8, 8))  # without rois
    assert not torch.is_autocast_enabled('cpu')
    with wrapper(nn.Linear(2, 2)).optim_context(model):
        assert torch.is_autocast_enabled('cpu')
        rois = torch.tensor([[0.0, 0, 0, 7, 7]], dtype=torch.bfloat16)
        assert model[0](torch.randn(1, 4, 8, 8).bfloat16(), rois).dtype == torch.float32
        assert torch.is_autocast_enabled('cpu')


def test_state_of_amp_optim_wrapper_is_taken():
    model = nn.Linear(2, 2)
    state = dict(wrapper(model).state_dict(), loss_scaler=dict(scale=65536.0))
    ours = wrapper(model, loss_scale='dynamic', dtype='bfloat16')
    ours.load_state_dict(state)
    assert state['loss_scaler'] and ours.state_dict()['param_groups'][0]['lr'] == 1e-3


def test_float16_is_refused():
    with pytest.raises(UserError, match="dtype='float16': mixed precision on a CPU runs in bfloat16 only"):
        wrapper(nn.Linear(2, 2), dtype='float16')
