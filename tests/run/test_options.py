"""Configs by command-line options, and sizes of images."""

from pathlib import Path

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


@pytest.mark.parametrize('package', ['convnext_dense', 'mmdet'])
def test_config_of_a_package(package):
    module = pytest.importorskip(package)
    folder = Path(module.__file__).parent / '.mim/configs'
    name = {'convnext_dense': 'mask_rcnn/convnext_t_3x_coco.py', 'mmdet': 'retinanet/retinanet_r50_fpn_1x_coco.py'}
    found = read_config(f'{package}::{name[package]}')
    assert Path(found.filename) == folder / name[package]
    assert found.model.type == {'convnext_dense': 'MaskRCNN', 'mmdet': 'RetinaNet'}[package]


@pytest.mark.parametrize(
    'name, message',
    [
        ('no_such_package::a.py', "is a config of the package 'no_such_package', which is not installed"),
        ('../a::b.py', "is a config of the package '../a', which is not installed"),
        ('convnext_dense::a.py', 'there is no config file .*convnext_dense/.mim/configs/a.py'),
    ],
)
def test_config_of_a_package_that_is_not_there(name, message):
    with pytest.raises(UserError, match=message):
        read_config(name)


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
