"""Every ConvNeXt in a file is found, and which one is taken is clear or an error."""

import pytest
import torch
from weights_helpers import MICRO, assert_backbone, redraw, runner_of, toy

from convnext_dense import ConvNeXt, UserError
from convnext_dense.weights.dialects import DIALECTS


@pytest.mark.parametrize(
    'first, second', [('model', 'model_ema'), ('teacher', 'student'), ('state_dict', 'state_dict_ema')]
)
def test_which_copy_is_taken(first, second, tmp_path, logged):
    one, other = toy(1), toy(7)
    torch.save({second: other, first: one}, tmp_path / 'both.pth')
    for prefix, state in ((None, one), (second, other), (f'{second}.backbone.', other), (first, one)):
        model = ConvNeXt(MICRO, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'both.pth'), prefix=prefix))
        model.init_weights()
        assert_backbone(model, state)
        rest = second if state is one else first
        assert f"(prefix '{first if state is one else second}.backbone.')" in logged[-1]
        assert f"not taken: the copy at '{rest}.backbone.'" in logged[-1]
    runner = runner_of(tmp_path, load_from=str(tmp_path / 'both.pth'))
    runner.load_or_resume()
    assert_backbone(runner.model, one)


@pytest.mark.parametrize(
    'dialect, prefix, siblings',
    [
        (
            'official',
            'model.backbone.bottom_up.',
            ('model.backbone.fpn_lateral2.weight', 'model.roi_heads.box_head.bias'),
        ),
        ('timm', 'visual.trunk.', ('visual.head.proj.weight', 'logit_scale', 'transformer.resblocks.0.ln_1.weight')),
        ('hf', 'backbone.', ('decode_head.classifier.weight',)),
    ],
)
def test_backbones_of_other_toolkits(dialect, prefix, siblings, logged):
    """detectron2, CLIP and transformers' UperNet: what stands beside the backbone is none of its parts."""
    source = redraw(ConvNeXt(MICRO))
    written, _ = next(d for d in DIALECTS if d.name == dialect).write(source.state_dict())
    model = ConvNeXt(MICRO)
    model.load_state_dict(
        {**{prefix + name: value for name, value in written.items()}, **{name: torch.ones(3) for name in siblings}}
    )
    for name, param in model.named_parameters():
        if not name.startswith('norm') or dialect != 'timm':
            assert torch.equal(param, source.get_parameter(name)), name
    assert f'(prefix {prefix!r})' in logged[-1]


def test_equal_copies_need_a_prefix():
    both = {'left': toy(1), 'right': toy(2)}
    with pytest.raises(UserError, match="several ConvNeXts, at the prefixes 'left.backbone.', 'right.backbone.': "):
        ConvNeXt(MICRO).load_state_dict(both)


def test_endless_nesting_ends(tmp_path):
    level = {'weight': torch.ones(1)}
    for _ in range(12):
        level = {str(i): level for i in range(20)}
    torch.save(level, tmp_path / 'laughs.pth')
    with pytest.raises(UserError, match='more than 100000 entries'):
        ConvNeXt(MICRO, pretrained=str(tmp_path / 'laughs.pth')).init_weights()
    endless = {}
    endless['model'] = endless
    with pytest.raises(UserError, match='none of its tensors'):
        ConvNeXt(MICRO).load_state_dict(endless)
