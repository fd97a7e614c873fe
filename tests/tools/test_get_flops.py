"""tools/get_flops.py: its table and what it refuses."""

import pytest
from helpers import ROOT
from mmengine.config import Config

from convnext_dense.complexity import PARTS, count

pytest.importorskip('mmdet')
DIGITS = ROOT / 'configs/mask_rcnn/convnext_digits.py'


def row_of_digits(text: str) -> str:
    """The row of the table; the toolkit may log lines of its own when it is imported first."""
    (row,) = (line for line in text.splitlines() if 'convnext_digits.py' in line)
    return row


def test_table_of_a_config(tool):
    message, text = tool('get_flops', DIGITS, '--shape', '64x96')
    assert message is None
    (head,) = (line for line in text.splitlines() if line.lstrip().startswith('image'))
    row = row_of_digits(text)
    assert head.split() == ['image', 'params', *PARTS, 'FLOPs', *PARTS, 'attention']
    name, image, params, *_ = row.split()
    assert name.endswith('convnext_digits.py') and image == '64x96' and params == '3.61'
    found = count(Config.fromfile(DIGITS), (64, 96))  # height, width
    assert found.shape == (64, 96) and row.split()[6] == f'{found.total_flops / 1e9:.2f}'
    assert 'HEIGHTxWIDTH' in text


def test_images_of_detectors_are_those_of_the_published_tables(tool):
    """1280x800 there, which is width first."""
    _, text = tool('get_flops', DIGITS)
    assert row_of_digits(text).split()[1] == '800x1280'


@pytest.mark.parametrize(
    'args, error',
    [
        ([], 'error: give config files, --all or --roadmap'),
        (['--all', 'x.py'], 'error: give config files, --all or --roadmap'),
        (['--all', '--roadmap'], 'error: give config files, --all or --roadmap'),
        (['--roadmap', '--shape', '64x64'], 'error: --roadmap counts at 224x224, as the paper does'),
        (['no.py'], 'error: there is no config file no.py'),
        (['no.py', '--shape', '640'], "error: '640' is not an image size: write HEIGHTxWIDTH"),
    ],
)
def test_errors(tool, args, error):
    assert tool('get_flops', *args)[0].startswith(error)


def test_zoo_is_the_model_index():
    from convnext_dense.run.flops import zoo_configs

    names = [name for name, path in zoo_configs() if Config.fromfile(path).model.type]
    assert len(names) == 68 and names[0].startswith('cascade_mask_rcnn/')
    assert sum(name.startswith('upernet/') for name in names) == 11


@pytest.mark.parametrize('name', ['dino_4scale_t_12e_coco.py', 'mask2former_t_512_160k_ade20k.py'])
def test_what_cannot_be_counted_has_a_sentence_and_stops_no_table(name, tool, monkeypatch):
    config = ROOT / 'configs/modern_heads' / name
    sentence = 'cannot be counted: it does not run on an image alone'
    assert sentence in tool('get_flops', config)[0]
    monkeypatch.setattr(
        'convnext_dense.run.flops.zoo_configs', lambda: [(name, str(config)), (DIGITS.name, str(DIGITS))]
    )
    monkeypatch.setattr('convnext_dense.run.flops.ARCHS', {})
    message, text = tool('get_flops', '--all')
    assert message is None and f'{name:<46}not counted: ' in text and sentence in text
    assert row_of_digits(text).split()[1] == '800x1280'
