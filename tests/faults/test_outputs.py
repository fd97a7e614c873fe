"""Kinds 15 and 18: every output argument of every tool, in every kind of unusable place, through the real tools."""

import importlib
import json
import os
import re
from pathlib import Path

import pytest
import torch
from conftest import TOY
from forked import run_forked
from helpers import ROOT
from private_mounts import mount, mount_unusable, reason_against

from convnext_dense.convert import convert
from convnext_dense.errors import UserError
from convnext_dense.models.convnext import ConvNeXt
from convnext_dense.outputs import check_file_output, whole_files

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')
for module in ('convnext_dense.export', 'convnext_dense.run.predict', 'convnext_dense.swap.swap'):
    importlib.import_module(module)  # before the forks

MASK_RCNN = ROOT / 'configs/mask_rcnn/convnext_digits.py'
UPERNET = ROOT / 'configs/upernet/convnext_digits.py'
RETINANET = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
MICRO = dict(depths=[1, 1, 1, 1], channels=[8, 16, 24, 32])

# The tool and its arguments; OUT stands for the place, IN for a weight file.
FILES = {
    'test --out': ('test', MASK_RCNN, 'IN', '--work-dir', 'WORK', '--out', 'OUT.pkl'),
    'export': ('export', MASK_RCNN, 'IN', 'OUT.onnx'),
    'export to OpenVINO': ('export', MASK_RCNN, 'IN', 'OUT.xml'),
    'export --part backbone': ('export', MASK_RCNN, 'IN', 'OUT.onnx', '--part', 'backbone'),
    'convert': ('convert_checkpoint', 'IN', 'OUT.pth', '--to', 'timm'),
    'convert to safetensors': ('convert_checkpoint', 'IN', 'OUT.safetensors', '--to', 'ours'),
    'swap': ('swap_backbone', RETINANET, '-o', 'OUT.py'),
}
FOLDERS = {
    'predict': ('predict', MASK_RCNN, 'IN', 'IMAGE', '--out', 'OUT'),
    'test --show-dir': ('test', MASK_RCNN, 'IN', '--work-dir', 'WORK', '--show-dir', 'OUT'),
    'test --out of a segmentor': ('test', UPERNET, 'IN', '--work-dir', 'WORK', '--out', 'OUT'),
    'test --work-dir': ('test', TOY, 'IN', '--work-dir', 'OUT'),
    'train --work-dir': ('train', TOY, '--no-data-check', '--work-dir', 'OUT'),
}


def touch(path):
    path.write_text('precious')


# How a place is made, and what the sentence says.
BAD_FILES = {
    'exists': (touch, 'exists already: give another name, or replace it by --overwrite'),
    'a folder': (Path.mkdir, 'is a folder, but a file is written here'),
    'below a file': (lambda path: touch(path.parent), 'is a file: give another path'),
    'a dangling link': (lambda path: path.symlink_to('gone/away'), 'exists already'),
    'full': (None, r'cannot be written \(No space left on device\): free space there, or give another place'),
    'read-only': (None, r'cannot be written \(Read-only file system\): give a place that you may write'),
}
BAD_FOLDERS = {
    'a file': (touch, 'is a file: give a new folder'),
    'in use': (lambda path: (path.mkdir(), touch(path / 'thesis.txt')), 'is not empty: give a new folder'),
    'below a file': (lambda path: touch(path.parent), 'is a file: give another path'),
    'full': BAD_FILES['full'],
    'read-only': BAD_FILES['read-only'],
}
CASES = [(name, place) for name in FILES for place in BAD_FILES]
CASES += [(name, place) for name in FOLDERS for place in BAD_FOLDERS if 'work-dir' not in name or place != 'in use']


@pytest.fixture(scope='module')
def inputs(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp('inputs')
    torch.save(ConvNeXt(MICRO, layer_scale_init_value=1.0).state_dict(), folder / 'in.pth')
    (folder / 'image.jpg').touch()
    return {'IN': folder / 'in.pth', 'IMAGE': folder / 'image.jpg', 'WORK': folder / 'work'}


@pytest.fixture(scope='module')
def needs_mounts(tmp_path_factory) -> str:
    return reason_against(tmp_path_factory.mktemp('mount'))


@pytest.mark.parametrize('name, place', CASES)
def test_unusable_place_is_refused_before_the_work(name, place, inputs, needs_mounts, tmp_path):
    tool, *arguments = (FILES | FOLDERS)[name]
    out = tmp_path / 'place' / 'out'
    make, sentence = (BAD_FILES if name in FILES else BAD_FOLDERS)[place]
    if place != 'below a file':
        out.parent.mkdir()
    arguments = [inputs.get(part, part) for part in arguments]
    arguments = [Path(f'{out}{part[3:]}') if str(part).startswith('OUT') else part for part in arguments]
    path = next(part for part in arguments if str(part).startswith(str(out)))
    inject = None
    if make is not None:
        make(path)
    elif needs_mounts:
        pytest.skip(f'no private mounts here: {needs_mounts}')
    else:
        inject = lambda: mount_unusable(out.parent, place)  # noqa: E731
    before = sorted(tmp_path.rglob('*'))
    outcome = run_forked(tool, *arguments, log=tmp_path / 'log.txt', inject=inject)
    assert outcome.status == 1 and 'Traceback' not in outcome.text, outcome.text
    if name == 'train --work-dir':
        assert 'cannot be written' in outcome.error or 'is a file' in outcome.error
    else:
        assert re.search(sentence, outcome.error), outcome.error
        assert path.name in outcome.error
    assert sorted(set(tmp_path.rglob('*')) - {tmp_path / 'log.txt'}) == before
    if make is touch:
        assert path.read_text() == 'precious'


@pytest.mark.parametrize('name', ['export', 'export --part backbone', 'convert', 'convert to safetensors', 'swap'])
def test_an_input_is_never_written(name, inputs, tmp_path):
    """Not under another name of it either, and not with --overwrite."""
    tool, *arguments = FILES[name]
    arguments = [inputs.get(part, part) for part in arguments]
    source = tmp_path / 'in.py'
    source.write_text("_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'\n")
    arguments = [source if part == RETINANET else part for part in arguments]
    suffix = next(part for part in arguments if str(part).startswith('OUT'))[3:]
    read = source if tool == 'swap_backbone' else inputs['IN']
    (tmp_path / f'link{suffix}').symlink_to(read)
    before = read.read_bytes()
    arguments = [tmp_path / f'link{suffix}' if str(part).startswith('OUT') else part for part in arguments]
    outcome = run_forked(tool, *arguments, '--overwrite', log=tmp_path / 'log.txt')
    assert outcome.status == 1 and 'is the file that is read: give another file to write' in outcome.error
    assert read.read_bytes() == before


@pytest.mark.parametrize('suffix', ['pth', 'safetensors'])
def test_disk_that_fills_up_leaves_no_partial_file(suffix, inputs, needs_mounts, tmp_path):
    """There is room for a few bytes, and not for the weights."""
    if needs_mounts:
        pytest.skip(f'no private mounts here: {needs_mounts}')
    place = tmp_path / 'place'
    place.mkdir()
    child = os.fork()
    if not child:
        try:
            mount(place, 'size=16384')
            try:
                convert(str(inputs['IN']), place / f'out.{suffix}', 'ours')
                message = 'written'
            except UserError as error:
                message = str(error)
            left = [path.name for path in place.iterdir()]
            (tmp_path / 'result.json').write_text(json.dumps([message, left]))
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    message, left = json.loads((tmp_path / 'result.json').read_text())
    assert f'out.{suffix} cannot be written (' in message and 'free space there' in message
    assert left == []


def test_overwrite_replaces_a_file(inputs, tmp_path):
    for out, overwrite in ((tmp_path / 'out.pth', []), (tmp_path / 'out.pth', ['--overwrite'])):
        if overwrite:
            out.write_text('old')
        arguments = ('convert_checkpoint', inputs['IN'], out, '--to', 'ours', *overwrite)
        outcome = run_forked(*arguments, log=tmp_path / 'log.txt')
        assert outcome.status == 0, outcome.text
        assert set(torch.load(out)['state_dict']) == set(torch.load(inputs['IN']))


def test_what_fails_leaves_the_old_file(tmp_path):
    out = tmp_path / 'out.bin'
    out.write_text('old')
    with pytest.raises(ZeroDivisionError), whole_files(out) as part:
        part.write_text('new')
        print(1 / 0)
    assert [path.name for path in tmp_path.iterdir()] == ['out.bin'] and out.read_text() == 'old'
    with whole_files(out) as part:
        part.write_text('new')
        part.with_suffix('.data').write_text('beside')
    assert out.read_text() == 'new' and (tmp_path / 'out.data').read_text() == 'beside'
    assert len(list(tmp_path.iterdir())) == 2


def test_devices_are_no_files_to_replace():
    with pytest.raises(UserError, match='is a device or another special file'):
        check_file_output(Path('/dev/null'), overwrite=True)
