"""The official layer decay, as literal tables, and what it refuses."""

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from torch import nn

from convnext_dense import ConvNeXt, UserError

MICRO = dict(depths=[1, 1, 4, 1], channels=[8, 16, 24, 32])


class Detector(nn.Module):
    """A backbone under some name, and a head."""

    def __init__(self, backbone: nn.Module, name: str = 'backbone') -> None:
        super().__init__()
        self.add_module(name, backbone)
        self.head = nn.Conv2d(8, 8, 1)


def optimizer_of(model, paramwise_cfg=None, lr=1.0, weight_decay=0.05, **wrapper):
    cfg = dict(
        constructor='ConvNeXtLayerDecayConstructor',
        optimizer=dict(type='AdamW', lr=lr, weight_decay=weight_decay),
        **wrapper,
    )
    if paramwise_cfg is not None:
        cfg['paramwise_cfg'] = paramwise_cfg
    return build_optim_wrapper(model, cfg)


def settings(model, paramwise_cfg=None, **kwargs):
    """{parameter name: (lr, weight decay)}; every trainable parameter must be in exactly one group."""
    groups = optimizer_of(model, paramwise_cfg, **kwargs).optimizer.param_groups
    names = {param: name for name, param in model.named_parameters()}
    flat = [(names[param], (group['lr'], group['weight_decay'])) for group in groups for param in group['params']]
    assert sorted(name for name, _ in flat) == sorted(name for name, p in model.named_parameters() if p.requires_grad)
    return dict(flat)


# Exponents of the decay rate, worked out by hand from the official rule: num_layers + 1 - id.
TINY_LAYER_WISE = {
    'downsample_layers.0.0': 7,
    'downsample_layers.0.1': 7,
    'stages.0.0': 6,
    'stages.0.2': 6,
    'downsample_layers.1.0': 5,
    'downsample_layers.1.1': 5,
    'stages.1.0': 5,
    'stages.1.2': 5,
    'downsample_layers.2.0': 4,
    'downsample_layers.2.1': 4,
    'stages.2.0': 4,
    'stages.2.1': 4,
    'stages.2.2': 4,
    'stages.2.3': 3,
    'stages.2.4': 3,
    'stages.2.5': 3,
    'stages.2.6': 2,
    'stages.2.7': 2,
    'stages.2.8': 2,
    'downsample_layers.3.0': 1,
    'downsample_layers.3.1': 1,
    'stages.3.0': 1,
    'stages.3.2': 1,
    'norm0': 0,
    'norm1': 0,
    'norm2': 0,
    'norm3': 0,
}
BASE_LAYER_WISE = {
    'downsample_layers.0.0': 13,
    'stages.0.0': 12,
    'stages.0.2': 12,
    'downsample_layers.1.1': 11,
    'stages.1.1': 11,
    'downsample_layers.2.1': 10,
    'stages.2.0': 10,
    'stages.2.2': 10,
    'stages.2.3': 9,
    'stages.2.8': 8,
    'stages.2.11': 7,
    'stages.2.12': 6,
    'stages.2.15': 5,
    'stages.2.18': 4,
    'stages.2.21': 3,
    'stages.2.24': 2,
    'stages.2.26': 2,
    'downsample_layers.3.0': 1,
    'stages.3.0': 1,
    'norm0': 0,
    'norm3': 0,
}
TINY_STAGE_WISE = {
    'downsample_layers.0.0': 7,
    'downsample_layers.1.1': 7,
    'downsample_layers.2.0': 7,
    'downsample_layers.3.1': 7,
    'stages.0.0': 6,
    'stages.0.2': 6,
    'stages.1.0': 5,
    'stages.2.0': 4,
    'stages.2.8': 4,
    'stages.3.2': 3,
    'norm0': 0,
    'norm1': 0,
    'norm2': 0,
    'norm3': 0,
}
BASE_STAGE_WISE = {
    'downsample_layers.0.0': 13,
    'downsample_layers.3.1': 13,
    'stages.0.0': 12,
    'stages.1.0': 11,
    'stages.2.0': 10,
    'stages.2.26': 10,
    'stages.3.2': 9,
    'norm0': 0,
    'norm3': 0,
}


@pytest.mark.parametrize(
    'arch, decay_type, rate, table',
    [
        ('tiny', 'layer_wise', 0.7, TINY_LAYER_WISE),
        ('base', 'layer_wise', 0.8, BASE_LAYER_WISE),
        ('tiny', 'stage_wise', 0.9, TINY_STAGE_WISE),
        ('base', 'stage_wise', 0.9, BASE_STAGE_WISE),
    ],
)
def test_official_rates(arch, decay_type, rate, table):
    with torch.device('meta'):
        model = Detector(ConvNeXt(arch))
    found = settings(model, dict(decay_type=decay_type, decay_rate=rate), lr=2e-4)
    seen = set()
    for name, (lr, _) in found.items():
        part = next((part for part in table if name.startswith(f'backbone.{part}.')), None)
        if part:
            seen.add(part)
            assert lr == pytest.approx(2e-4 * rate ** table[part], rel=1e-12), name
    assert seen == set(table)
    assert found['head.weight'] == (2e-4, 0.05)


def test_weight_decay_spares_vectors_and_biases_everywhere():
    found = settings(Detector(ConvNeXt(MICRO, use_grn=True)))
    block = 'backbone.stages.2.0.'
    assert {name[len(block) :]: decay for name, (_, decay) in found.items() if name.startswith(block)} == {
        'gamma': 0,
        'dwconv.weight': 0.05,
        'dwconv.bias': 0,
        'norm.weight': 0,
        'norm.bias': 0,
        'pwconv1.weight': 0.05,
        'pwconv1.bias': 0,
        'grn.gamma': 0,
        'grn.beta': 0,
        'pwconv2.weight': 0.05,
        'pwconv2.bias': 0,
    }
    assert (found['head.weight'][1], found['head.bias'][1], found['backbone.norm0.weight'][1]) == (0.05, 0, 0)


@pytest.mark.parametrize('paramwise_cfg', [None, {}])
def test_decays_without_any_setting(paramwise_cfg):
    found = settings(Detector(ConvNeXt(MICRO)), paramwise_cfg)
    assert found['backbone.downsample_layers.0.0.weight'][0] == pytest.approx(0.9**6)  # num_layers 3 + ceil(4 / 3)


def test_finds_the_backbone_anywhere():
    class Student(nn.Module):
        def __init__(self):
            super().__init__()
            self.detector = Detector(ConvNeXt(MICRO), 'img_backbone')
            self.depth_net = ConvNeXt('atto', out_indices=(0, 1))

    found = settings(Student())
    assert found['detector.img_backbone.stages.0.0.dwconv.weight'][0] == pytest.approx(0.9**5)
    assert found['depth_net.stages.0.0.dwconv.weight'][0] == pytest.approx(0.9**5)
    assert found['depth_net.norm1.weight'][0] == 1
    assert settings(ConvNeXt(MICRO))['stages.0.0.dwconv.weight'][0] == pytest.approx(0.9**5)


def test_groups_are_merged():
    groups = optimizer_of(Detector(ConvNeXt('tiny')), dict(decay_rate=0.7)).optimizer.param_groups
    assert len(groups) == 16  # ids 0 to 7, with and without weight decay
    assert len({(group['lr'], group['weight_decay']) for group in groups}) == 16


def test_adamw_is_fused_where_torch_has_a_kernel():
    found = []
    for fused in (None, False):
        torch.manual_seed(0)
        model = ConvNeXt(dict(depths=(1, 1, 1, 1), channels=(8, 8, 8, 8)))
        cfg = dict(
            constructor='ConvNeXtLayerDecayConstructor',
            optimizer=dict(type='AdamW', lr=0.1, **({} if fused is None else {'fused': fused})),
        )
        optimizer = build_optim_wrapper(model, cfg).optimizer
        assert {group['fused'] for group in optimizer.param_groups} == {fused is None}
        sum(out.square().sum() for out in model(torch.ones(1, 3, 32, 32))).backward()
        optimizer.step()
        found.append(torch.cat([param.detach().flatten() for param in model.parameters()]))
    torch.testing.assert_close(*found, rtol=0, atol=1e-6)
    assert (
        build_optim_wrapper(model.to('meta'), dict(cfg, optimizer=dict(type='AdamW', lr=0.1))).optimizer.defaults[
            'fused'
        ]
        is None
    )


def test_custom_keys_multiply_the_rule():
    keys = {
        'head': dict(lr_mult=10.0, decay_mult=2.0),
        'backbone.stages.0': dict(lr_mult=0.5),
        'backbone.stages.0.0.norm': dict(lr_mult=0.0),
    }
    found = settings(Detector(ConvNeXt(MICRO)), dict(custom_keys=keys))
    assert found['head.weight'] == (10.0, 0.1)
    assert found['backbone.stages.0.0.pwconv1.weight'][0] == pytest.approx(0.5 * 0.9**5)
    assert found['backbone.stages.0.0.norm.weight'][0] == 0, 'the longer key of the two'
    assert found['backbone.stages.1.0.pwconv1.weight'][0] == pytest.approx(0.9**4)


def test_frozen_parameters_are_left_out():
    found = settings(Detector(ConvNeXt(MICRO, frozen_stages=1)))
    assert not [name for name in found if name.startswith(('backbone.stages.0', 'backbone.downsample_layers.0'))]


def test_base_rate_is_known_to_the_logger():
    wrapper = optimizer_of(Detector(ConvNeXt(MICRO)), lr=3e-4)
    assert wrapper.get_lr()['base_lr'] == [3e-4]


def test_logs_one_small_table(monkeypatch):
    lines = []
    monkeypatch.setattr('convnext_dense.engine.layer_decay.print_log', lambda text, **_: lines.append(text))
    optimizer_of(Detector(ConvNeXt('tiny')), dict(decay_rate=0.7))
    (table,) = lines
    assert table.splitlines()[0] == (
        'layer decay: layer_wise, rate 0.7, base lr 1, weight decay 0.05, 16 parameter groups'
    )
    assert len(table.splitlines()) == 10
    # The stem: a convolution with its bias, a LayerNorm.
    assert table.splitlines()[2].split() == ['0', '0.08235', '1', '3', '4,896']
    assert table.splitlines()[-1].split()[:2] == ['7,', 'outside']


class WithExtra(ConvNeXt):
    def __init__(self, **kwargs):
        super().__init__(MICRO, **kwargs)
        self.adapter = nn.Linear(4, 4)


class BadId(ConvNeXt):
    def layer_id(self, name, decay_type):
        return 99


@pytest.mark.parametrize(
    'model, cfg, sentence',
    [
        (lambda: ConvNeXt(MICRO), dict(decay_rate=1.1), 'decay_rate=1.1.*0 < decay_rate <= 1'),
        (lambda: ConvNeXt(MICRO), dict(decay_rate=0), 'decay_rate=0'),
        (lambda: ConvNeXt(MICRO), dict(decay_type='blockwise'), "decay_type='blockwise': use one of"),
        (lambda: ConvNeXt(MICRO), dict(num_layers=12), "num_layers=12, the ConvNeXt at 'backbone' has 5: leave"),
        (lambda: ConvNeXt(MICRO), dict(norm_decay_mult=0.0), "'norm_decay_mult'.*does not know: use decay_type"),
        (lambda: ConvNeXt(MICRO), dict(custom_keys={'backbon.': dict(lr_mult=2)}), 'backbon..* match no trainable'),
        (lambda: nn.Conv2d(8, 8, 1), {}, 'no ConvNeXt in Detector'),
        (WithExtra, {}, "does not know the ConvNeXt parameter 'adapter.weight'"),
        (lambda: BadId(MICRO), {}, 'above num_layers'),
    ],
)
def test_refusals(model, cfg, sentence):
    with pytest.raises(UserError, match=sentence):
        optimizer_of(Detector(model()), cfg)


def test_equal_num_layers_is_accepted():
    assert settings(Detector(ConvNeXt(MICRO)), dict(num_layers=5))


def test_mmdet_constructor_accepts_our_names():
    """mmdet's own constructor knows the official parameter names, so ours fit it."""
    pytest.importorskip('mmdet')
    from mmdet.engine.optimizers.layer_decay_optimizer_constructor import get_layer_id_for_convnext

    model = ConvNeXt('tiny')
    for name, _ in model.named_parameters():
        if not name.startswith('norm'):
            assert get_layer_id_for_convnext(f'backbone.{name}', 6) == model.layer_id(name, 'layer_wise'), name
