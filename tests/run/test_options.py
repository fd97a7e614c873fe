"""Configs by command-line options, and sizes of images."""

import pytest

from convnext_dense.errors import UserError
from convnext_dense.run.options import errors_as_sentences, height_and_width, nested_dicts, read_config

CONFIG = """
data_root = 'data/coco/'
model = dict(depth=50, norm=dict(type='BN'))
train = dict(root=data_root, file='data/coco/a.json', other='data/coconut/b.json', more=['data/coco', 3])
"""


@pytest.fixture
def config(tmp_path) -> str:
    (tmp_path / 'config.py').write_text(CONFIG)
    return str(tmp_path / 'config.py')


def test_values_are_those_of_mmengine(config):
    """Numbers, booleans, None, lists and tuples, as mmengine's DictAction reads them."""
    cfg = read_config(config, ['model.depth=101', 'model.norm.type=None', '+a=[(1,2.5),(True,x)]', '+b=1,2', '+c=d=e'])
    assert cfg.model == dict(depth=101, norm=dict(type=None))
    assert cfg.a == [(1, 2.5), (True, 'x')] and cfg.b == [1, 2] and cfg.c == 'd=e'


def test_no_change(config):
    assert read_config(config).model == dict(depth=50, norm=dict(type='BN'))


def test_data_root_moves_what_is_below_it(config):
    cfg = read_config(config, ['data_root=/mnt/sets/coco/', 'model.depth=18'])
    assert cfg.train == dict(
        root='/mnt/sets/coco/',
        file='/mnt/sets/coco/a.json',
        other='data/coconut/b.json',
        more=['/mnt/sets/coco', 3],
    )
    assert cfg.model.depth == 18


@pytest.mark.parametrize(
    'options, sentence',
    [(['model.depth'], 'model.depth: write KEY=VALUE'), (['a=[(1,2]'], 'Imbalanced brackets .*: close every bracket')],
)
def test_malformed_changes(config, options, sentence):
    with pytest.raises(UserError, match=sentence):
        read_config(config, options)


def test_missing_config():
    with pytest.raises(UserError, match='there is no config file gone.py: check the path'):
        read_config('gone.py')


def test_size_is_height_first():
    assert height_and_width('480x640') == (480, 640)
    for text in ('640', '0x640', '640,480', '640x480x3', '-1x5', 'axb'):
        with pytest.raises(UserError, match='write HEIGHTxWIDTH'):
            height_and_width(text)


def test_nested_dicts():
    inner, tail = dict(a=1), dict(b=2)
    whole = dict(x=[inner, (3, tail)], y='text')
    assert list(nested_dicts(whole)) == [whole, inner, tail]


def test_errors_that_a_user_can_act_on_are_sentences():
    with pytest.raises(SystemExit) as stop, errors_as_sentences():
        raise UserError('found this, wanted that: do so')
    assert stop.value.code == 'error: found this, wanted that: do so'
    with pytest.raises(ZeroDivisionError), errors_as_sentences():
        print(1 / 0)
