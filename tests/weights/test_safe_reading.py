"""What is read of damaged and hostile files: one sentence, and never code."""

import io
import pickle
import zipfile

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from weights_helpers import MICRO, Hostile, imagenet, load_unsafely_in_the_end, runner_of, toy, zip_bytes

from convnext_dense import ConvNeXt, UserError
from convnext_dense.weights.safe_reading import only_safe_loading, read_file
from convnext_dense.weights.sources import read


def bomb() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('archive/data.pkl', b'\x80\x02}q\x00.')
        archive.writestr('archive/data/0', bytes(64 * 2**20))
    return stream.getvalue()


@pytest.mark.parametrize(
    'name, content, sentence',
    [
        ('a.pth', lambda: b'', 'is empty: get the file again'),
        (
            'a.pth',
            lambda: b'<!DOCTYPE html><html>Sign in</html>',
            "is a web page, not weights .it begins with '<!DOCTYPE",
        ),
        ('a.pth', lambda: b'\n  <html>', 'is a web page'),
        ('a.pth', lambda: b'version https://git-lfs.github.com/spec/v1\noid sha256:1', 'is a Git LFS pointer'),
        ('a.pth', lambda: zip_bytes(imagenet())[:-3000], 'ends early or is damaged'),
        ('a.pth', lambda: zip_bytes(imagenet())[:40], 'ends early or is damaged'),
        (
            'a.pth',
            lambda: zip_bytes(imagenet(), _use_new_zipfile_serialization=False)[:9000],
            'is damaged or not a check',
        ),
        ('a.pth', lambda: bytes(range(256)) * 40, 'is damaged or not a checkpoint'),
        ('a.pth', lambda: b'hello', 'is damaged or not a checkpoint'),
        ('a.pth', lambda: b'PK\x03\x04' + bytes(500), 'ends early or is damaged'),
        ('a.pth', bomb, 'would unpack to 64 MiB from 0.1, as no checkpoint does'),
        ('a.safetensors', lambda: b'\x10\x27\0\0\0\0\0\0{"a":', 'ends early or is not a safetensors file'),
        ('a.pth', lambda: b'\x10\x27\0\0\0\0\0\0{"a":', 'ends early or is not a safetensors file'),
        (
            'a.pth',
            lambda: zip_bytes(3),
            'none of its tensors: it holds no ConvNeXt in a known layout, its first names are',
        ),
        ('a.pth', lambda: zip_bytes({'model': {3: torch.ones(1)}}), 'none of its tensors'),
        (
            'a.pkl',
            lambda: pickle.dumps({'model': 3}),
            'is a pickle of Python objects, which may hold code',
        ),
    ],
)
def test_damaged_files(name, content, sentence, tmp_path):
    (tmp_path / name).write_bytes(content())
    with pytest.raises(UserError, match=sentence) as error:
        ConvNeXt(MICRO, pretrained=str(tmp_path / name)).init_weights()
    assert '\n' not in str(error.value) and str(tmp_path / name) in str(error.value)


def save_as_zip(content, path):
    torch.save(content, path)


def save_as_legacy(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


def save_as_pickle(content, path):
    path.write_bytes(pickle.dumps(content))


@pytest.fixture(params=['this distribution', 'one that falls back'])
def distribution(request, monkeypatch):
    if request.param == 'one that falls back':
        monkeypatch.setitem(CheckpointLoader._schemes, '', load_unsafely_in_the_end)


@pytest.mark.parametrize('save', [save_as_zip, save_as_legacy, save_as_pickle])
@pytest.mark.parametrize('way', ['pretrained', 'init_cfg with prefix', 'scheme', 'load_from', 'resume'])
def test_hostile_pickles_are_never_executed(way, save, tmp_path, distribution):
    path, mark = tmp_path / 'weights.pth', tmp_path / 'mark'
    save({'state_dict': toy(), 'meta': Hostile(mark), 'message_hub': {}}, path)
    with pytest.raises(UserError, match='holds code, not only tensors .*, which was not executed') as error:
        if way == 'pretrained':
            ConvNeXt(MICRO, pretrained=str(path)).init_weights()
        elif way == 'init_cfg with prefix':
            ConvNeXt(MICRO, init_cfg=dict(type='Pretrained', checkpoint=str(path), prefix='backbone.')).init_weights()
        elif way == 'scheme':
            CheckpointLoader.load_checkpoint(f'convnext-dense:{path}', map_location='cpu')
        else:
            runner_of(tmp_path, load_from=f'convnext-dense:{path}', resume=way == 'resume').train()
    assert not mark.exists() and '\n' not in str(error.value) and '--trust-checkpoint' in str(error.value)


def test_only_safe_loading_holds_for_every_loader(tmp_path, distribution, monkeypatch):
    """Around a whole run in the tools, where a detector's own init_cfg is read by mmengine."""
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    torch.save({'state_dict': Hostile(tmp_path / 'mark')}, tmp_path / 'weights.pth')
    with only_safe_loading(), pytest.raises(pickle.UnpicklingError):
        CheckpointLoader.load_checkpoint(str(tmp_path / 'weights.pth'), map_location='cpu')
    assert not (tmp_path / 'mark').exists()
    with only_safe_loading(), pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / 'weights.pth', weights_only=False)
    torch.load(tmp_path / 'weights.pth', weights_only=False)  # outside of it users do as they like
    assert (tmp_path / 'mark').exists()


@pytest.mark.parametrize('scheme', ['', 'convnext-dense:'])
@pytest.mark.parametrize('key', ['config', 'cfg'])
def test_code_in_the_meta_of_a_checkpoint_is_never_executed(key, scheme, tmp_path):
    runner_of(tmp_path).train()
    path, mark = tmp_path / 'work/iter_1.pth', tmp_path / 'mark'
    checkpoint = read_file(path, mmap=False)
    checkpoint['meta'][key] = f'import pathlib\npathlib.Path({str(mark)!r}).write_text("ran")\n'
    checkpoint['meta']['seed'] = 5
    torch.save(checkpoint, path)

    class Seen(Hook):
        priority = 'LOWEST'

        def after_load_checkpoint(self, runner, checkpoint):
            self.meta = dict(checkpoint['meta'])

    seen = Seen()
    runner = runner_of(tmp_path, load_from=f'{scheme}{path}', resume=True)
    runner.register_hook(seen)
    runner.train()
    assert runner.iter == 1 and not mark.exists()
    assert key not in seen.meta and seen.meta['seed'] == 5


def test_safe_loading_reads_mmengines_log(tmp_path):
    buffer = HistoryBuffer()
    buffer.update(3.5)
    history = dict(loss=buffer, numpy=np.float64(2.5), integers=np.arange(3))
    torch.save(history, tmp_path / 'good.pth')
    loaded = read(str(tmp_path / 'good.pth'))
    assert loaded['loss'].current() == 3.5 and loaded['numpy'] == 2.5 and loaded['integers'].tolist() == [0, 1, 2]


def test_options_of_the_official_code_are_read(tmp_path):
    from argparse import Namespace

    torch.save({**imagenet(), 'args': Namespace(lr=4e-3, model='convnext_tiny'), 'scaler': {}}, tmp_path / 'train.pth')
    ConvNeXt(MICRO, pretrained=str(tmp_path / 'train.pth')).init_weights()
    assert read(str(tmp_path / 'train.pth'))['args'].lr == 4e-3


@pytest.mark.filterwarnings('ignore:Detected pickle protocol')
@pytest.mark.parametrize('verify', [True, False])
def test_a_changed_byte_is_a_sentence_or_changes_nothing(verify, tmp_path):
    """Every byte of a file once. Without the check of CRC-32, only tensors may differ."""
    saved = dict(weight=torch.arange(6.0), meta=dict(epoch=3))
    path = tmp_path / 'epoch_3.pth'
    torch.save(saved, path)
    whole = path.read_bytes()
    refused = 0
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            found = read_file(path, verify=verify)
        except UserError:
            refused += 1
        else:
            assert not verify or torch.equal(found['weight'], saved['weight']) and found['meta'] == saved['meta'], place
    assert refused >= 300
