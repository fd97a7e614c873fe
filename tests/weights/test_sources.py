"""Weight files from every source: paths, mirrors, URLs, hubs and short names."""

import hashlib
import http.server
import threading
from functools import partial

import pytest
import torch
from mmengine.runner import CheckpointLoader
from weights_helpers import MICRO, V2, fill, imagenet, isotropic_layout, official_layout, runner_of, zip_bytes

from convnext_dense import ConvNeXt, ConvNeXtIsotropic, UserError
from convnext_dense.weights.sources import check_source, fetch, locate, official_files


@pytest.fixture
def folder(tmp_path, monkeypatch):
    path = tmp_path / 'mirror'
    path.mkdir()
    monkeypatch.setenv('CONVNEXT_DENSE_WEIGHTS', str(path))
    return path


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
        (
            'convnext_base_22k_224',
            'convnext_base_22k_224.pth',
            '; input statistics of these weights: ImageNet; licence of these weights: MIT',
        ),
        (
            'https://dl.fbaipublicfiles.com/convnext/convnext_tiny_1k_224.pth',
            'convnext_tiny_1k_224.pth',
            '; input statistics of these weights: ImageNet; licence of these weights: MIT',
        ),
        (
            'convnextv2_atto_1k_224_fcmae',
            'convnextv2_atto_1k_224_fcmae.pt',
            '; input statistics of these weights: ImageNet'
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
            '; input statistics of these weights: ImageNet; licence of these weights: Apache 2.0',
        ),
        (
            'timm:convnext_tiny',
            'convnext_tiny.in12k_ft_in1k.safetensors',
            '; input statistics of these weights: ImageNet; licence of these weights: Apache 2.0',
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
    assert (
        'upernet_convnext_tiny_1k_512x512: input statistics of these weights: ImageNet; licence of these weights: MIT'
        in logged
    )


@pytest.mark.parametrize(
    'source',
    [
        'convnext_iso_small_1k_224_ema',
        'convnext_iso_large_1k_224_ema.pth',
        'https://dl.fbaipublicfiles.com/convnext/convnext_iso_base_1k_224_ema.pth',
    ],
)
def test_isotropic_files_by_name(source, folder, logged):
    state = fill(isotropic_layout(depth=2, width=8))
    name = source.split('/')[-1].removesuffix('.pth')
    torch.save({'model': state}, folder / f'{name}.pth')
    pretrained = dict(type='Pretrained', checkpoint=source)
    model = ConvNeXtIsotropic(dict(depth=2, channels=8), layer_scale_init_value=1.0, init_cfg=pretrained)
    model.init_weights()
    assert torch.equal(model.blocks[1].gamma, state['blocks.1.gamma'])
    assert logged == [
        'ConvNeXtIsotropic dict(depth=2, channels=8): 20 of 20 tensors from an official isotropic file (prefix '
        "'model.'); norm0 start new, as they must for ImageNet weights; input statistics of these weights: ImageNet; "
        'licence of these weights: MIT'
    ]
    with pytest.raises(UserError, match='these weights are those of a ConvNeXtIsotropic, arch=dict.* the model is a'):
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
            'the weights of hf-hub:a/b could not be downloaded from https://huggingface.co/a/b .*put it',
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


@pytest.mark.parametrize(
    'source, url',
    [
        ('convnext_tiny_1k_224', 'https://dl.fbaipublicfiles.com/convnext/convnext_tiny_1k_224.pth'),
        ('https://x/y.pth', 'https://x/y.pth'),
        ('hf-hub:someone/convnext', 'https://huggingface.co/someone/convnext'),
        ('timm:convnext_tiny.fb_in1k', 'https://huggingface.co/timm/convnext_tiny.fb_in1k'),
    ],
)
def test_where_weights_would_be_taken_from(source, url, tmp_path, folder, monkeypatch):
    """The server, torch's cache, the hub's cache, the user's folder: each before the one that stands before it here."""
    monkeypatch.setattr('torch.hub.get_dir', lambda: str(tmp_path / 'cache'))
    monkeypatch.setattr('huggingface_hub.try_to_load_from_cache', lambda repository, name: None)
    assert locate(source) == url
    name = url.split('/')[-1]
    if source.startswith(('hf-hub:', 'timm:')):
        cached = tmp_path / 'hub' / name
        monkeypatch.setattr(
            'huggingface_hub.try_to_load_from_cache',
            lambda repository, file: str(cached) if (repository, file) == (url[23:], 'pytorch_model.bin') else None,
        )
    else:
        cached = tmp_path / 'cache/checkpoints' / name
        cached.parent.mkdir(parents=True)
        cached.write_text('')
    assert locate(source) == cached
    (folder / name).write_text('')
    assert locate(source) == folder / name


def test_sources_that_cannot_be_located(tmp_path):
    assert locate('torchvision://resnet50') is None
    with pytest.raises(UserError, match='there is no file gone.pth'):
        locate('gone.pth')


def test_check_source():
    with pytest.raises(UserError, match='there is no checkpoint file gone.pth: check the path'):
        check_source('gone.pth', 'checkpoint')
    for source in ('https://x/y.pth', 'hf-hub:a/b', 'timm:convnext_tiny', 'convnext_tiny_1k_224', 's3://a/b.pth'):
        check_source(source, 'checkpoint')
