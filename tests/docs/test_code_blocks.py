"""Every code block of README and docs runs as it is printed there, or says what it would need."""

import argparse
import re
import runpy
import shutil
import sys
from collections import OrderedDict
from configparser import ConfigParser
from pathlib import Path

import numpy as np
import pytest
import torch
from code_blocks import NEEDS, Block, commands_of, find_blocks, program_of
from exported import write_small_file
from helpers import ROOT
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.visualization import Visualizer
from PIL import Image

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')

BLOCKS = find_blocks()
SUBCOMMANDS = {
    name: file for name, (file, _) in runpy.run_path(str(ROOT / 'convnext_dense/cli.py'))['COMMANDS'].items()
}
# What the pages write in capitals: files of the reader, and new ones.
VALUES = dict(
    CONFIG='config.py',
    CHECKPOINT='checkpoint.pth',
    IMAGE_OR_FOLDER='street.jpg',
    LABELS='labels',
    DATA='data',
    OTHER='other',
    OTHER_WORK_DIR='run',
    IN='weights.pth',
    OUT='converted.pth',
    FOLDER='out',
    HEIGHTxWIDTH='64x96',
    GPUS='2',
)
WIDTHS = [8, 16, 24, 32]
# The demo's model, smaller, on fewer images.
CONFIG = f"""
_base_ = {str(ROOT / 'configs/mask_rcnn/convnext_digits.py')!r}
model = dict(backbone=dict(arch=dict(depths=[1, 1, 1, 1], channels={WIDTHS})), neck=dict(in_channels={WIDTHS}))
train_dataloader = val_dataloader = test_dataloader = dict(num_workers=0, persistent_workers=False)
train_cfg = dict(max_epochs=1)
"""
DETECTOR = "_base_ = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'\n"


@pytest.fixture(scope='session')
def readers_files(digits, tmp_path_factory) -> Path:
    """A config, its checkpoint, weights, an image, labels and an exported file."""
    from random_weights import random_weights

    from convnext_dense import ConvNeXt

    folder = tmp_path_factory.mktemp('reader')
    (folder / 'config.py').write_text(CONFIG)
    (folder / 'your_config.py').write_text(DETECTOR)
    init_default_scope('mmdet')
    model = random_weights(MODELS.build(Config.fromfile(folder / 'config.py').model))
    torch.save(dict(state_dict=model.state_dict(), meta={}), folder / 'checkpoint.pth')
    backbone = ConvNeXt(arch=dict(depths=[1, 1, 1, 1], channels=WIDTHS))
    torch.save(dict(model=backbone.state_dict()), folder / 'weights.pth')
    shutil.copy(next((digits / 'digits/coco/val2017').iterdir()), folder / 'street.jpg')
    write_small_file(folder / 'OUT.onnx')
    write_labels(folder / 'labels')
    for name in ('configs', 'tools'):
        (folder / name).symlink_to(ROOT / name)
    return folder


def write_labels(folder: Path) -> None:
    """Write a table of boxes and its images: two tiles of each of five photographs."""
    folder.mkdir()
    rows = ['image,xmin,ymin,xmax,ymax,label']
    for photograph in range(5):
        for tile in range(2):
            name = f'{photograph}_tile{tile}.png'
            pixels = np.random.default_rng(2 * photograph + tile).integers(0, 255, (64, 64, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name)
            rows.append(f'{name},4,4,40,{30 + tile},{("cat", "dog")[tile]}')
    (folder / 'boxes.csv').write_text('\n'.join(rows) + '\n')


@pytest.fixture
def reader(readers_files, digits, tmp_path, monkeypatch) -> Path:
    """The working folder of a reader, with what the block may use."""
    folder = tmp_path / 'reader'
    shutil.copytree(readers_files, folder, symlinks=True)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))  # as for a script
    monkeypatch.setenv('CONVNEXT_DENSE_DATA', str(digits))
    monkeypatch.setattr(sys, 'argv', ['a block'])
    return folder


def run_program(path: str, arguments: list[str]) -> None:
    """Run a Python file of the repository in this process."""
    Visualizer._instance_dict = OrderedDict()  # one a process: mmdet's hook takes the last one made
    sys.argv = [path, *arguments]
    try:
        runpy.run_path(str(ROOT / path), run_name='__main__')
    except SystemExit as stop:
        assert not stop.code, f'{path} {" ".join(arguments)}: {stop.code}'


def run_bash(block: Block, monkeypatch) -> None:
    for command in commands_of(block.code, VALUES, with_options=False):
        program = command.words and program_of(command.words, SUBCOMMANDS)
        assert program or not command.words, (
            f'{block.name}: {command.words[0]} is no program of this repository: write <!-- needs: ... --> before the '
            'block, see tests/docs/code_blocks.py'
        )
        if not command.words:
            for name, value in command.variables.items():
                monkeypatch.setenv(name, value)
            continue
        with monkeypatch.context() as context:
            for name, value in command.variables.items():
                context.setenv(name, value)
            run_program(*program)


def run_python(block: Block) -> None:
    """Execute a program; read a config, on a detector of mmdet's where it names no base, and build its model."""
    if not re.search(r'^(_base_|model) = ', block.code, re.M):
        exec(compile(block.code, block.name, 'exec'), {})
        return
    config = Path('block.py')
    config.write_text(block.code if '_base_ = ' in block.code else DETECTOR + block.code)
    cfg = Config.fromfile(config)
    init_default_scope('mmdet')
    with torch.device('meta'):  # shapes only
        backbone = MODELS.build(cfg.model).backbone
    assert type(backbone).__name__ == 'ConvNeXt'


def test_every_page_has_blocks_that_are_run():
    assert {block.name.partition(':')[0] for block in BLOCKS} >= {'README.md', 'docs/get_started.md'}
    assert len([block for block in BLOCKS if block.is_run]) >= 15


@pytest.mark.parametrize('block', BLOCKS, ids=lambda block: block.name)
def test_mark(block):
    assert block.mark in ('', 'slow', 'excerpt', 'notebook') or block.needs
    assert [need for need in block.needs if need not in NEEDS] == []


@pytest.mark.parametrize(
    'block',
    [
        pytest.param(block, id=block.name, marks=[pytest.mark.docs] if block.mark == 'slow' else [])
        for block in BLOCKS
        if block.is_run
    ],
)
def test_block_runs(block, reader, monkeypatch):
    if 'tools/export.py' in block.code:
        Path('OUT.onnx').unlink()  # it is there for the blocks that run it
    if block.language == 'bash':
        run_bash(block, monkeypatch)
    else:
        run_python(block)


class Parsed(Exception):
    """The arguments of a tool were read."""


@pytest.mark.parametrize('block', [block for block in BLOCKS if block.language == 'bash'], ids=lambda block: block.name)
def test_commands_exist(block, reader, monkeypatch):
    """With everything that the reader may leave out: options, files of this repository, extras, make targets."""
    parse = argparse.ArgumentParser.parse_args

    def parse_only(self, *args):
        parse(self, *args)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, 'parse_args', parse_only)
    for command in commands_of(block.code, VALUES, with_options=True):
        program = command.words and program_of(command.words, SUBCOMMANDS)
        if program:
            with pytest.raises(Parsed):
                run_program(*program)
        for word in command.words:
            if re.match(r'(configs|tools|docs|examples)/', word):
                assert (ROOT / word).exists(), word
            if word.startswith('convnext_dense::'):
                assert (ROOT / 'configs' / word.partition('::')[2]).is_file(), word
            extras = re.search(r'^(?:\.|convnext-dense)\[(.*)\]$', word)
            assert not extras or {*extras[1].split(',')} <= extras_of_the_package(), word
        if command.words[:1] == ['make']:
            targets = [word for word in command.words[1:] if '=' not in word]
            rules = re.findall(r'^([a-z-]+):', (ROOT / 'Makefile').read_text(), re.M)
            assert {*targets} <= {*rules}, command.words


def extras_of_the_package() -> set[str]:
    config = ConfigParser()
    config.read(ROOT / 'setup.cfg')
    return {*config['options.extras_require']}


@pytest.mark.parametrize(
    'block', [block for block in BLOCKS if block.language == 'python'], ids=lambda block: block.name
)
def test_syntax(block):
    compile(block.code, block.name, 'exec')
