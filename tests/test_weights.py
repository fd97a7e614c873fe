"""Official weights load completely or not at all, by every way of loading."""
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from mmengine.runner import load_checkpoint

from convnext_dense import ConvNeXt, UserError

MICRO = dict(depths=[1, 1, 2, 1], channels=[8, 16, 24, 32])


def official_file(arch=MICRO, use_grn=False, seed=1):
    """Weights laid out as in the official ImageNet files: final norm and classifier, no output norms."""
    torch.manual_seed(seed)
    model = ConvNeXt(arch, use_grn=use_grn, layer_scale_init_value=0. if use_grn else 1e-6)
    state = OrderedDict((name, torch.randn_like(value)) for name, value in model.state_dict().items()
                        if not name.startswith('norm'))
    if use_grn:
        state = OrderedDict((name, value.view(1, 1, 1, -1) if '.grn.' in name else value)
                            for name, value in state.items())
    width = model.channels[-1]
    state.update({'norm.weight': torch.rand(width), 'norm.bias': torch.rand(width),
                  'head.weight': torch.rand(1000, width), 'head.bias': torch.rand(1000)})
    return {'model': state}


def assert_loaded(model, checkpoint):
    for name, value in checkpoint['model'].items():
        if not name.startswith(('norm.', 'head.')):
            assert torch.equal(model.get_parameter(name), value.flatten() if '.grn.' in name else value), name
    for i in model.out_indices:  # new: LayerNorm's initial values
        assert (model.get_submodule(f'norm{i}').weight == 1).all()


@pytest.mark.parametrize('way', ['init_cfg', 'pretrained', 'load_state_dict', 'load_checkpoint', 'bare'])
@pytest.mark.parametrize('use_grn', [False, True])
def test_every_way_of_loading(way, use_grn, tmp_path):
    checkpoint = official_file(use_grn=use_grn)
    path = str(tmp_path / 'official.pth')
    torch.save(checkpoint, path)
    given = {'init_cfg': dict(init_cfg=dict(type='Pretrained', checkpoint=path)),
             'pretrained': dict(pretrained=path)}.get(way, {})
    model = MODELS.build(dict(type='ConvNeXt', arch=MICRO, use_grn=use_grn,
                              layer_scale_init_value=0. if use_grn else 1e-6, **given))
    model.init_weights()
    if way == 'load_state_dict':
        model.load_state_dict(checkpoint)
    elif way == 'bare':
        model.load_state_dict(checkpoint['model'])
    elif way == 'load_checkpoint':
        load_checkpoint(model, path)
    assert_loaded(model, checkpoint)


def test_nested_backbone_and_later_init_weights(tmp_path):
    class Detector(BaseModule):

        def __init__(self, path):
            super().__init__(init_cfg=dict(type='Normal', layer='Conv2d', std=9.))
            self.backbone = ConvNeXt(MICRO, pretrained=path)

    checkpoint = official_file()
    torch.save(checkpoint, tmp_path / 'official.pth')
    detector = Detector(str(tmp_path / 'official.pth'))
    detector.init_weights()
    assert_loaded(detector.backbone, checkpoint)
    other = Detector(None)
    other.load_state_dict({f'backbone.{name}': value for name, value in detector.backbone.state_dict().items()})
    for name, value in detector.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)


def test_prefix_of_a_detector_file(tmp_path):
    source = ConvNeXt(MICRO)
    torch.save({'state_dict': {f'backbone.{k}': v for k, v in source.state_dict().items()}}, tmp_path / 'det.pth')
    model = ConvNeXt(MICRO, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'det.pth'), prefix='backbone.'))
    model.init_weights()
    for name, value in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)


def test_summary_is_one_line(monkeypatch):
    lines = []
    monkeypatch.setattr('convnext_dense.weights.print_log', lambda text, **_: lines.append(text))
    ConvNeXt('tiny').load_state_dict(official_file('tiny'))
    assert lines == ['ConvNeXt: 178 of 178 tensors loaded; norm0, norm1, norm2, norm3 start new, as they must for '
                     'ImageNet weights']


def test_stages_that_are_left_out_do_not_disturb():
    checkpoint = official_file()
    model = ConvNeXt(MICRO, out_indices=(0, 1))
    model.load_state_dict(checkpoint)
    assert torch.equal(model.stages[1][0].gamma, checkpoint['model']['stages.1.0.gamma'])


def drop(name):
    return lambda state: state.pop(name)


def add(name):
    return lambda state: state.update({name: torch.zeros(3)})


def reshape(state):
    state['stages.0.0.gamma'] = torch.zeros(9)


@pytest.mark.parametrize('change, sentence', [
    (drop('stages.2.1.pwconv2.bias'), '1 tensors of the model are not in the file: stages.2.1.pwconv2.bias'),
    (add('stages.2.9.gamma'), '1 tensors of the file are not in the model: stages.2.9.gamma'),
    (add('decoder.weight'), 'not in the model: decoder.weight'),
    (reshape, r'1 shapes differ: stages.0.0.gamma \(9,\) for \(8,\)'),
    (lambda state: state.clear(), 'no ConvNeXt in the official layout'),
])
def test_misfits_raise(change, sentence, tmp_path):
    checkpoint = official_file()
    change(checkpoint['model'])
    torch.save(checkpoint, tmp_path / 'file.pth')
    for strict in (True, False):
        with pytest.raises(UserError, match=sentence):
            ConvNeXt(MICRO).load_state_dict(checkpoint, strict=strict)
    with pytest.raises(UserError, match=f'file.pth: .*{sentence}'):
        ConvNeXt(MICRO, pretrained=str(tmp_path / 'file.pth')).init_weights()


def test_small_is_not_taken_for_tiny():
    """Every tensor of a Tiny has a match in a Small file: only the surplus tells."""
    with pytest.raises(UserError, match="looks like arch='small', the model is arch='tiny'"):
        ConvNeXt('tiny').load_state_dict(official_file('small'))


def test_missing_file_names_the_way_out():
    with pytest.raises(UserError, match='nowhere.pth.*model.backbone.init_cfg=None'):
        ConvNeXt(MICRO, pretrained='nowhere.pth').init_weights()


def test_unreachable_url_names_the_way_out():
    with pytest.raises(UserError, match='http://127.0.0.1:9/c.pth.*model.backbone.init_cfg=None'):
        ConvNeXt(MICRO, pretrained='http://127.0.0.1:9/c.pth').init_weights()


class Hostile:

    def __reduce__(self):
        return print, ('code of the file ran',)


def test_safe_loading_reads_mmengines_log_but_no_code(tmp_path, capsys):
    buffer = HistoryBuffer()
    buffer.update(3.5)
    history = dict(loss=buffer, numpy=np.float64(2.5), integers=np.arange(3))
    torch.save(history, tmp_path / 'good.pth')
    loaded = torch.load(tmp_path / 'good.pth', weights_only=True)
    assert loaded['loss'].current() == 3.5 and loaded['numpy'] == 2.5 and loaded['integers'].tolist() == [0, 1, 2]
    torch.save(dict(model=Hostile()), tmp_path / 'bad.pth')
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / 'bad.pth', weights_only=True)
    with pytest.raises(UserError, match='no file of plain tensors'):
        ConvNeXt(MICRO, pretrained=str(tmp_path / 'bad.pth')).init_weights()
    assert 'code of the file ran' not in capsys.readouterr().out
