"""Weight files from every source, and what is read of damaged and hostile ones: one sentence, and never code."""

import hashlib
import http.server
import io
import pickle
import threading
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from test_weights import MICRO, V2, fill, official_layout, runner_of, toy

from convnext_dense import ConvNeXt, UserError
from convnext_dense.weights.safe_reading import only_safe_loading, read_file
from convnext_dense.weights.sources import check_source, fetch, official_files, read


class Hostile:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, 'code of the file ran')


@pytest.fixture
def folder(tmp_path, monkeypatch):
    path = tmp_path / 'mirror'
    path.mkdir()
    monkeypatch.setenv('CONVNEXT_DENSE_WEIGHTS', str(path))
    return path


def imagenet(v2=False):
    return {'model': fill(official_layout(MICRO, v2))}


def zip_bytes(content, **options):
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


# ---- safe reading


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
        ('a.pth', lambda: zip_bytes(imagenet(), _use_new_zipfile_serialization=False)[:9000], 'is damaged or no check'),
        ('a.pth', lambda: bytes(range(256)) * 40, 'is damaged or no checkpoint'),
        ('a.pth', lambda: b'hello', 'is damaged or no checkpoint'),
        ('a.pth', lambda: b'PK\x03\x04' + bytes(500), 'ends early or is damaged'),
        ('a.pth', bomb, 'would unpack to 64 MiB from 0.1, as no checkpoint does'),
        ('a.safetensors', lambda: b'\x10\x27\0\0\0\0\0\0{"a":', 'ends early or is no safetensors file'),
        ('a.pth', lambda: b'\x10\x27\0\0\0\0\0\0{"a":', 'ends early or is no safetensors file'),
        (
            'a.pth',
            lambda: zip_bytes(3),
            'none of its tensors: it holds no ConvNeXt in a known layout, its first names are',
        ),
        ('a.pth', lambda: zip_bytes({'model': {3: torch.ones(1)}}), 'none of its tensors'),
        (
            'a.pkl',
            lambda: pickle.dumps({'model': 3}),
            'holds more than plain tensors .it is a pickle of Python objects',
        ),
    ],
)
def test_damaged_files(name, content, sentence, tmp_path):
    (tmp_path / name).write_bytes(content())
    with pytest.raises(UserError, match=sentence) as error:
        ConvNeXt(MICRO, pretrained=str(tmp_path / name)).init_weights()
    assert '\n' not in str(error.value) and str(tmp_path / name) in str(error.value)


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


def test_tensors_that_only_pretend_to_be_large():
    state = imagenet()['model']
    state['stages.0.0.grn.gamma'] = torch.ones(1).expand(1, 1, 1, 10**12)
    state['stages.0.0.pwconv1.weight'] = torch.ones(1, 1, 1, 1).expand(10**6, 10**6, 1, 1)
    with pytest.raises(UserError, match=r'1 tensors of the file are not .*pwconv1.weight \(1000000, 1000000\) for'):
        ConvNeXt(MICRO).load_state_dict(state)


def save_as_zip(content, path):
    torch.save(content, path)


def save_as_legacy(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


def save_as_pickle(content, path):
    path.write_bytes(pickle.dumps(content))


def load_unsafely_in_the_end(filename, map_location=None):
    """What onedl-mmengine 0.10.12 does with a local file."""
    try:
        return torch.load(filename, map_location=map_location, weights_only=True)
    except Exception:
        return torch.load(filename, map_location=map_location, weights_only=False)


@pytest.fixture(params=['this distribution', 'one that falls back'])
def distribution(request, monkeypatch):
    if request.param == 'one that falls back':
        monkeypatch.setitem(CheckpointLoader._schemes, '', load_unsafely_in_the_end)


@pytest.mark.parametrize('save', [save_as_zip, save_as_legacy, save_as_pickle])
@pytest.mark.parametrize('way', ['pretrained', 'init_cfg with prefix', 'scheme', 'load_from', 'resume'])
def test_hostile_pickles_are_never_executed(way, save, tmp_path, distribution):
    path, mark = tmp_path / 'weights.pth', tmp_path / 'mark'
    save({'state_dict': toy(), 'meta': Hostile(mark), 'message_hub': {}}, path)
    with pytest.raises(UserError, match='holds more than plain tensors .*, which was not executed') as error:
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


# ---- sources


def test_table_of_official_files():
    files = official_files()
    assert len(files) == 66 and sum('_iso_' in name for name in files) == 3
    assert files['convnext_base_22k_224'] == 'https://dl.fbaipublicfiles.com/convnext/convnext_base_22k_224.pth'
    assert sum('convnextv2' in name for name in files) == 26
    for name in files:
        assert CheckpointLoader._get_checkpoint_loader(name).__name__ == 'load_from_convnext_dense'


@pytest.mark.parametrize(
    'source, file, licence',
    [
        ('convnext_base_22k_224', 'convnext_base_22k_224.pth', '; licence of these weights: MIT'),
        (
            'https://dl.fbaipublicfiles.com/convnext/convnext_tiny_1k_224.pth',
            'convnext_tiny_1k_224.pth',
            '; licence of these weights: MIT',
        ),
        (
            'convnextv2_atto_1k_224_fcmae',
            'convnextv2_atto_1k_224_fcmae.pt',
            '; licence of these weights: CC BY-NC 4.0, not for commercial use',
        ),
        ('http://127.0.0.1:9/mine.pth', 'mine.pth', ''),
        ('mine.pth', 'mine.pth', ''),
        (
            'hf-hub:someone/convnext',
            'someone/convnext/model.safetensors',
            '; licence of these weights: see the model card of someone/convnext',
        ),
        (
            'hf-hub:someone/convnext',
            'convnext.safetensors',
            '; licence of these weights: see the model card of someone/convnext',
        ),
        (
            'timm:convnext_tiny.fb_in1k',
            'convnext_tiny.fb_in1k.safetensors',
            '; licence of these weights: see the model card of timm/convnext_tiny.fb_in1k',
        ),
        (
            'timm:convnext_tiny',
            'convnext_tiny.in12k_ft_in1k.safetensors',
            '; licence of these weights: see the model card of timm/convnext_tiny.in12k_ft_in1k',
        ),
    ],
)
def test_folder_of_weights_is_searched_first(source, file, licence, folder, logged):
    state = imagenet('v2' in source)
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == '.safetensors':
        from safetensors.torch import save_file

        save_file(state['model'], path)
    else:
        torch.save(state, path)
    check_source(source, 'checkpoint')
    options = V2 if 'v2' in source else {}
    model = ConvNeXt(MICRO, **options, init_cfg=dict(type='Pretrained', checkpoint=source))
    model.init_weights()
    assert torch.equal(model.stages[3][0].dwconv.weight, state['model']['stages.3.0.dwconv.weight'])
    assert len(logged) == 1 and logged[0].endswith('as they must for ImageNet weights' + licence)


def test_short_name_by_load_from(folder, tmp_path, logged):
    state = fill(official_layout(MICRO, False, output_norms=True))
    torch.save(
        {'state_dict': {f'backbone.{key}': value for key, value in state.items()}},
        folder / 'upernet_convnext_tiny_1k_512x512.pth',
    )
    runner = runner_of(tmp_path, load_from='upernet_convnext_tiny_1k_512x512')
    runner.load_or_resume()
    assert torch.equal(runner.model.backbone.norm0.weight, state['norm0.weight'])
    assert 'upernet_convnext_tiny_1k_512x512: licence of these weights: MIT' in logged


@pytest.mark.parametrize(
    'source',
    [
        'convnext_iso_small_1k_224_ema',
        'convnext_iso_large_1k_224_ema.pth',
        'https://dl.fbaipublicfiles.com/convnext/convnext_iso_base_1k_224_ema.pth',
    ],
)
def test_isotropic_files_are_refused_by_name(source):
    with pytest.raises(UserError, match='holds an isotropic ConvNeXt, an architecture without stages'):
        ConvNeXt(MICRO, pretrained=source).init_weights()


@pytest.mark.parametrize(
    'source, sentence',
    [
        ('nowhere.pth', 'there is no file nowhere.pth: check the path'),
        (
            'http://127.0.0.1:9/c.pth',
            'c.pth could not be downloaded from http://127.0.0.1:9/c.pth .*CONVNEXT_DENSE_WEIGH',
        ),
        (
            'convnext_tiny_1k_224',
            'convnext_tiny_1k_224.pth could not be downloaded from https://dl.fbaipublicfiles.com/conv',
        ),
        (
            'hf-hub:a/b',
            'model.safetensors of hf-hub:a/b could not be downloaded from https://huggingface.co/a/b .*put it',
        ),
        ('timm:convnext_nonesuch', 'does not say which weights of that model'),
    ],
)
def test_files_that_cannot_be_had(source, sentence, tmp_path, monkeypatch):
    def no_network(*args, **kwargs):
        raise OSError('no network')

    monkeypatch.setattr('huggingface_hub.hf_hub_download', no_network)
    if 'tiny' in source:
        monkeypatch.setattr('torch.hub.urlopen', no_network)
    monkeypatch.setattr('torch.hub.get_dir', lambda: str(tmp_path))
    with pytest.raises(UserError, match=sentence) as error:
        ConvNeXt(MICRO, pretrained=source).init_weights()
    assert '--cfg-options model.backbone.init_cfg=None' in str(error.value) and '\n' not in str(error.value)


def test_safetensors_from_the_hub(tmp_path, monkeypatch):
    import huggingface_hub
    from safetensors.torch import save_file

    state = imagenet()['model']
    save_file(state, tmp_path / 'model.safetensors')
    asked = []

    def download(repository, name):
        asked.append((repository, name))
        return str(tmp_path / 'model.safetensors')

    monkeypatch.setattr(huggingface_hub, 'hf_hub_download', download)
    model = ConvNeXt(MICRO, pretrained='hf-hub:facebook/convnext-tiny-224')
    model.init_weights()
    assert asked == [('facebook/convnext-tiny-224', 'model.safetensors')]
    assert torch.equal(model.stages[0][0].gamma, state['stages.0.0.gamma'])


def test_download_and_its_checksum(tmp_path, monkeypatch):
    content = zip_bytes(imagenet())
    served = tmp_path / 'served'
    served.mkdir()
    digest = hashlib.sha256(content).hexdigest()[:8]
    (served / f'good-{digest}.pth').write_bytes(content)
    (served / 'bad-01234567.pth').write_bytes(content)
    monkeypatch.setattr('torch.hub.get_dir', lambda: str(tmp_path / 'cache'))
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(served))
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f'http://127.0.0.1:{server.server_port}'
        ConvNeXt(MICRO, pretrained=f'{url}/good-{digest}.pth').init_weights()
        with pytest.raises(UserError, match='bad-01234567.pth could not be downloaded .*invalid hash value'):
            fetch(f'{url}/bad-01234567.pth')
        with pytest.raises(UserError, match='404'):
            fetch(f'{url}/gone.pth')
        server.shutdown()
    assert fetch(f'{url}/good-{digest}.pth').read_bytes() == content  # the second time from the cache
    assert not (tmp_path / 'cache/checkpoints/bad-01234567.pth').exists()


def test_checksum_of_a_mirrored_file(folder):
    content = zip_bytes(imagenet())
    name = f'convnext_tiny-{hashlib.sha256(content).hexdigest()[:8]}.pth'
    (folder / name).write_bytes(content)
    assert fetch(f'https://download.pytorch.org/models/{name}') == folder / name
    (folder / 'convnext_tiny-983f1562.pth').write_bytes(content)
    with pytest.raises(UserError, match='its sha256 begins with .*, not with 983f1562 as its name says'):
        fetch('https://download.pytorch.org/models/convnext_tiny-983f1562.pth')


def test_folder_variable_must_be_a_folder(monkeypatch):
    monkeypatch.setenv('CONVNEXT_DENSE_WEIGHTS', 'no_such_folder')
    with pytest.raises(UserError, match='CONVNEXT_DENSE_WEIGHTS=no_such_folder is no folder'):
        fetch('convnext_tiny_1k_224')


def test_other_schemes_are_left_to_mmengine(tmp_path, monkeypatch):
    state = imagenet()
    asked = []

    def from_there(filename, map_location=None):
        asked.append(filename)
        if 'gone' in filename:
            raise KeyError(filename)
        return state

    from_there.__name__ = 'load_from_there'
    monkeypatch.setitem(CheckpointLoader._schemes, r'(\S+\:)?s3://', from_there)
    ConvNeXt(MICRO, pretrained='s3://a/b.pth').init_weights()
    runner_of(tmp_path, load_from='convnext-dense:s3://a/c.pth').load_or_resume()
    assert asked == ['s3://a/b.pth', 's3://a/c.pth']
    with pytest.raises(UserError, match='s3://a/gone.pth could not be read .*give a local copy'):
        ConvNeXt(MICRO, pretrained='s3://a/gone.pth').init_weights()


def test_check_source():
    with pytest.raises(UserError, match='there is no checkpoint file gone.pth: check the path'):
        check_source('gone.pth', 'checkpoint')
    for source in ('https://x/y.pth', 'hf-hub:a/b', 'timm:convnext_tiny', 'convnext_tiny_1k_224', 's3://a/b.pth'):
        check_source(source, 'checkpoint')
