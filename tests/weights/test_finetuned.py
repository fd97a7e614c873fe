"""Whole official detectors and segmentors, in the format of mmdet 2.x and mmseg 0.x, go into our configs as they are.

Their names are written down here as those toolkits built them. Nothing is renamed: mmdet 3 and mmseg 1 kept them.
"""

import json

import pytest
import torch
from helpers import ROOT
from test_configs import load
from weights_helpers import fill, official_layout

from convnext_dense import ARCHS
from convnext_dense.complexity import build_on_meta

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')


def layer(name, *shape, bias=True):
    """A convolution or Linear."""
    return {f'{name}.weight': shape, **({f'{name}.bias': shape[:1]} if bias else {})}


def conv_bn(name, *shape):
    """mmcv's ConvModule with a (Sync)BN."""
    bn = ('weight', 'bias', 'running_mean', 'running_var')
    return {
        **layer(f'{name}.conv', *shape, bias=False),
        **{f'{name}.bn.{part}': shape[:1] for part in bn},
        f'{name}.bn.num_batches_tracked': (),
    }


def detector(channels, box_head, masks):
    """{name: shape} of mmdet 2.x's FPN, RPN, box head(s) and mask head(s), 80 classes."""
    names = {}
    for i, width in enumerate(channels):
        names.update(layer(f'neck.lateral_convs.{i}.conv', 256, width, 1, 1))
        names.update(layer(f'neck.fpn_convs.{i}.conv', 256, 256, 3, 3))
    names.update(layer('rpn_head.rpn_conv', 256, 256, 3, 3))
    names.update(layer('rpn_head.rpn_cls', 3, 256, 1, 1))
    names.update(layer('rpn_head.rpn_reg', 12, 256, 1, 1))
    names.update(box_head)
    for mask in masks:
        for i in range(4):
            names.update(layer(f'{mask}.convs.{i}.conv', 256, 256, 3, 3))
        names.update(layer(f'{mask}.upsample', 256, 256, 2, 2))
        names.update(layer(f'{mask}.conv_logits', 80, 256, 1, 1))
    return names


def mask_rcnn(channels):
    head = 'roi_head.bbox_head'
    return detector(
        channels,
        {
            **layer(f'{head}.fc_cls', 81, 1024),
            **layer(f'{head}.fc_reg', 320, 1024),
            **layer(f'{head}.shared_fcs.0', 1024, 256 * 7 * 7),
            **layer(f'{head}.shared_fcs.1', 1024, 1024),
        },
        ['roi_head.mask_head'],
    )


def cascade_mask_rcnn(channels):
    names = {}
    for stage in range(3):
        head = f'roi_head.bbox_head.{stage}'
        names.update(
            {
                **layer(f'{head}.fc_cls', 81, 1024),
                **layer(f'{head}.fc_reg', 320, 1024),
                **layer(f'{head}.shared_fcs.0', 1024, 256 * 7 * 7),
            }
        )
        for i in range(4):
            names.update(conv_bn(f'{head}.shared_convs.{i}', 256, 256, 3, 3))
    return detector(channels, names, [f'roi_head.mask_head.{stage}' for stage in range(3)])


def upernet(channels):
    names = {
        **layer('decode_head.conv_seg', 150, 512, 1, 1),
        **layer('auxiliary_head.conv_seg', 150, 256, 1, 1),
        **conv_bn('auxiliary_head.convs.0', 256, channels[2], 3, 3),
        **conv_bn('decode_head.bottleneck', 512, channels[3] + 4 * 512, 3, 3),
        **conv_bn('decode_head.fpn_bottleneck', 512, 4 * 512, 3, 3),
    }
    for i in range(4):
        names.update(conv_bn(f'decode_head.psp_modules.{i}.1', 512, channels[3], 1, 1))
    for i in range(3):
        names.update(conv_bn(f'decode_head.lateral_convs.{i}', 512, channels[i], 1, 1))
        names.update(conv_bn(f'decode_head.fpn_convs.{i}', 512, 512, 3, 3))
    return names


def checkpoint(heads, arch, classes):
    """As mmdet 2.x and mmseg 0.x save it, with code in the text of its config."""
    names = {
        f'backbone.{name}': shape for name, shape in official_layout(ARCHS[arch], False, output_norms=True).items()
    }
    names.update(heads(ARCHS[arch]['channels']))
    state = fill({name: shape for name, shape in names.items() if shape})
    state.update({name: torch.tensor(7) for name, shape in names.items() if not shape})
    for name, value in state.items():
        if name.endswith('running_var'):
            state[name] = value.abs() + 0.5
        elif name.endswith('fc_cls.bias'):
            value[10:] = -100.0  # the sample data have ten classes
    return dict(
        state_dict=state,
        optimizer=dict(state={}, param_groups=[dict(lr=1e-4, params=[0, 1])]),
        amp={},
        meta=dict(
            epoch=36,
            iter=10,
            seed=None,
            exp_name='x.py',
            mmcv_version='1.3.0',
            mmdet_version='2.11.0',
            CLASSES=classes,
            PALETTE=None,
            time='Wed',
            config="raise SystemExit('code of the file ran')",
        ),
    )


LEAVES = {
    'mask_rcnn/convnext_t_3x_coco.py': (mask_rcnn, 'tiny'),
    'cascade_mask_rcnn/convnext_b_3x_coco.py': (cascade_mask_rcnn, 'base'),
    'upernet/convnext_t_512_160k_ade20k.py': (upernet, 'tiny'),
}


@pytest.mark.parametrize('leaf', LEAVES)
def test_names_and_shapes_are_those_of_our_configs(leaf):
    heads, arch = LEAVES[leaf]
    theirs = {
        f'backbone.{name}': shape for name, shape in official_layout(ARCHS[arch], False, output_norms=True).items()
    }
    theirs.update(heads(ARCHS[arch]['channels']))
    assert theirs == {name: tuple(value.shape) for name, value in build_on_meta(load(leaf)).state_dict().items()}


IN_PROCESS = (
    'test_dataloader.num_workers=0',
    'test_dataloader.persistent_workers=False',
    'model.backbone.init_cfg=None',
    'model.backbone.arch=atto',
)


@pytest.mark.parametrize(
    'leaf, options',
    [
        (
            'mask_rcnn/convnext_t_3x_coco.py',
            (
                'model.neck.in_channels=[40,80,160,320]',
                'model.test_cfg.rpn.max_per_img=5',
                'model.test_cfg.rcnn.max_per_img=1',
                'test_dataloader.dataset.pipeline.1.scale=(160,96)',
            ),
        ),
        (
            'cascade_mask_rcnn/convnext_b_3x_coco.py',
            (
                'model.neck.in_channels=[40,80,160,320]',
                'model.test_cfg.rpn.max_per_img=5',
                'model.test_cfg.rcnn.max_per_img=1',
                'test_dataloader.dataset.pipeline.1.scale=(160,96)',
            ),
        ),
        (
            'upernet/convnext_t_512_160k_ade20k.py',
            (
                'model.decode_head.in_channels=[40,80,160,320]',
                'model.auxiliary_head.in_channels=160',
                'test_dataloader.dataset.pipeline.1.scale=(64,64)',
                'model.test_cfg.mode=whole',
            ),
        ),
    ],
)
def test_the_test_tool_takes_them_directly(leaf, options, official_names, tmp_path, tool):
    torch.save(checkpoint(LEAVES[leaf][0], 'atto', ('person',)), tmp_path / 'official.pth')
    message, text = tool(
        'test',
        ROOT / 'configs' / leaf,
        tmp_path / 'official.pth',
        '--work-dir',
        tmp_path / 'work',
        '--cfg-options',
        *IN_PROCESS,
        *options,
        data=official_names,
    )
    assert message is None
    log = next((tmp_path / 'work').glob('*/*.log')).read_text()
    assert 'ConvNeXt atto: 132 of 132 tensors from an official file' in text + log
    for word in ('do not match exactly', 'missing keys', 'unexpected key', 'size mismatch', 'start new'):
        assert word not in text + log
    assert json.loads((tmp_path / 'work/metrics.json').read_text())


def test_a_detector_of_another_kind_is_refused(official_names, tmp_path, tool):
    torch.save(checkpoint(mask_rcnn, 'atto', ('person',)), tmp_path / 'official.pth')
    message, _ = tool(
        'test',
        ROOT / 'configs/cascade_mask_rcnn/convnext_b_3x_coco.py',
        tmp_path / 'official.pth',
        '--work-dir',
        tmp_path / 'work',
        '--cfg-options',
        *IN_PROCESS,
        'model.neck.in_channels=[40,80,160,320]',
        data=official_names,
    )
    assert message.startswith('error: the checkpoint lacks ') and 'roi_head.bbox_head.0.fc_cls.weight' in message


def test_baselines_take_only_what_fits_too(official_names, tmp_path, tool):
    """mmengine would test a Swin with random weights and a warning."""
    torch.save(checkpoint(mask_rcnn, 'atto', ('person',)), tmp_path / 'official.pth')
    message, _ = tool(
        'test',
        ROOT / 'configs/mask_rcnn/swin_t_3x_coco.py',
        tmp_path / 'official.pth',
        '--work-dir',
        tmp_path / 'work',
        '--cfg-options',
        *IN_PROCESS[:3],
        data=official_names,
    )
    assert message.startswith('error: the checkpoint lacks ') and 'backbone.patch_embed.projection.weight' in message
