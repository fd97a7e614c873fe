"""What is known about published weights, and what happens where it contradicts the config or the model."""

import json

import pytest
import timm
import torch
from helpers import ROOT
from mmengine.config import Config
from mmengine.model import ImgDataPreprocessor
from mmengine.registry import MODELS
from safetensors.torch import save_file
from timm.models import get_pretrained_cfg
from weights_helpers import MICRO, ToyDetector, imagenet, runner_of

from convnext_dense import ConvNeXt, UserError, swap_backbone
from convnext_dense.convert import convert
from convnext_dense.engine.statistics import check_statistics
from convnext_dense.weights.known import CLIP, HALF, IMAGENET, Known, known_weights, official_files, timm_weights
from convnext_dense.weights.sources import facts_of

TAGS = [
    f'{name}.{tag}'
    for name in timm.list_models()
    if name.startswith(('convnext', 'test_convnext'))
    for tag in (full.partition('.')[2] for full in timm.list_pretrained(f'{name}.*'))
]
BASE = dict(type='mmengine.ConvNeXt', arch=MICRO)


@MODELS.register_module()
class NormalisingToy(ToyDetector):
    """A ToyDetector whose images are normalised."""

    def __init__(self, backbone: dict, mean: list[float], std: list[float]) -> None:
        super().__init__(backbone)
        self.data_preprocessor = ImgDataPreprocessor(mean, std, bgr_to_rgb=True)


def toy_with(source, mean, std, **options):
    """A model that has just loaded weights of this name."""
    model = NormalisingToy(dict(BASE, **options), mean, std)
    model.backbone.take_facts(source, Known(known_weights(source).statistics))
    return model


def test_every_tag_of_timm():
    assert len(TAGS) == 101 and set(timm_weights()) == set(TAGS)
    counts = {statistics.name: 0 for statistics in (IMAGENET, CLIP, HALF)}
    for tag in TAGS:
        cfg = get_pretrained_cfg(tag)
        mean, std = [255 * value for value in cfg.mean], [255 * value for value in cfg.std]
        known = known_weights(f'timm:{tag}')
        assert known == known_weights(f'hf-hub:timm/{tag}') == known_weights(f'/some/folder/{tag}.safetensors')
        assert known.statistics.mean == pytest.approx(mean) and known.statistics.std == pytest.approx(std)
        counts[known.statistics.name] += 1
        commercial = 'not for commercial use' not in known.licence
        assert commercial == ('cc-by-nc' not in cfg.license and 'noncommercial' not in cfg.license)
        assert ('DINOv3 License' in known.licence) == ('dinov3' in tag)
        if cfg.url:
            by_url = known_weights(cfg.url)
            assert by_url.statistics == known.statistics

        # The check itself, for these statistics and for those of the two other kinds.
        check_statistics(toy_with(f'timm:{tag}', mean, std))
        for other in (IMAGENET, CLIP, HALF):
            if other != known.statistics:
                model = toy_with(f'timm:{tag}', list(other.mean), list(other.std))
                with pytest.raises(UserError, match=f'timm:{tag} was trained with the input statistics of '):
                    check_statistics(model)
                model.backbone.allow_statistics_mismatch = True
                check_statistics(model)
    assert counts == {'ImageNet': 72, 'CLIP': 24, 'half': 5}


@pytest.mark.parametrize('name', sorted({tag.split('.')[0] for tag in TAGS}))
def test_default_tags(name):
    assert known_weights(f'timm:{name}') == known_weights(f'timm:{name}.{get_pretrained_cfg(name).tag}')
    assert facts_of(f'timm:{name}').licence


@pytest.mark.parametrize(
    'source, statistics, licence, arch',
    [
        ('convnext_base_22k_224', IMAGENET, 'MIT', None),
        ('convnext_iso_small_1k_224_ema', IMAGENET, 'MIT', None),
        (
            'https://dl.fbaipublicfiles.com/convnext/convnextv2/im1k/convnextv2_atto_1k_224_ema.pt',
            IMAGENET,
            'NC 4.0',
            None,
        ),
        ('hf-hub:facebook/dinov3-convnext-tiny-pretrain-lvd1689m', IMAGENET, 'DINOv3 License', 'tiny'),
        ('w/dinov3_convnext_large_pretrain_lvd1689m-61fa432d.pth', IMAGENET, 'DINOv3 License', 'large'),
        ('https://huggingface.co/facebook/EUPE-ConvNeXt-S/resolve/main/EUPE-ConvNeXt-S.pt', IMAGENET, 'FAIR', 'small'),
        ('hf-hub:laion/CLIP-convnext_base_w-laion2B-s13B-b82K-augreg', CLIP, 'MIT', 'base'),
        ('hf-hub:laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup', CLIP, 'MIT', 'large'),
        ('hf-hub:laion/CLIP-convnext_xxlarge-laion2B-s34B-b82K-augreg-soup', CLIP, 'MIT', 'xxlarge'),
        ('hf-hub:facebook/convnext-large-224-22k-1k', IMAGENET, '', 'large'),
        ('mine.pth', None, '', None),
    ],
)
def test_other_names(source, statistics, licence, arch):
    known = known_weights(source)
    assert known.statistics == statistics and licence in known.licence
    assert (known.arguments or {}).get('arch') == arch


def test_official_files_are_all_known():
    assert all(known_weights(name).statistics == IMAGENET and known_weights(name).licence for name in official_files())


def test_rounding_is_no_contradiction():
    assert IMAGENET.agrees([123.68, 116.78, 103.94], [58.4, 57.1, 57.4])
    assert not IMAGENET.agrees(CLIP.mean, CLIP.std) and not IMAGENET.agrees(IMAGENET.mean[::-1], IMAGENET.std[::-1])


# ---- in a training


@pytest.fixture
def clip_file(tmp_path, monkeypatch):
    name = 'convnext_base.clip_laion2b'
    save_file(imagenet()['model'], tmp_path / f'{name}.safetensors')
    monkeypatch.setenv('CONVNEXT_DENSE_WEIGHTS', str(tmp_path))
    return f'timm:{name}'


@pytest.mark.parametrize('way', ['init_cfg', 'load_from'])
def test_runner_refuses_other_statistics(way, clip_file, tmp_path, logged):
    def run(statistics, **backbone):
        options = dict(load_from=clip_file) if way == 'load_from' else {}
        if way == 'init_cfg':
            backbone.update(init_cfg=dict(type='Pretrained', checkpoint=clip_file))
        model = dict(type='NormalisingToy', mean=list(statistics.mean), std=list(statistics.std))
        runner_of(tmp_path, model=dict(model, backbone=dict(BASE, **backbone)), **options).train()

    with pytest.raises(UserError, match=r'clip_laion2b was trained with the input statistics of CLIP, the .*122.771'):
        run(IMAGENET)
    run(IMAGENET, allow_statistics_mismatch=True)
    run(CLIP)
    assert any(
        'input statistics of these weights: CLIP; licence of these weights: Apache 2.0' in line for line in logged
    )


# ---- facts inside files


def test_converted_files_say_what_they_are(clip_file, tmp_path):
    for out in ('ours.safetensors', 'ours.pth'):
        convert(clip_file, tmp_path / out, 'ours')
        checkpoint = torch.load(tmp_path / out) if out.endswith('pth') else None
        facts = facts_of(str(tmp_path / out), checkpoint)
        assert facts.statistics.agrees(CLIP.mean, CLIP.std) and facts.licence == 'Apache 2.0'
        assert facts.arguments == dict(arch='base')


def test_config_beside_a_file_of_timm(tmp_path):
    save_file(imagenet()['model'], tmp_path / 'model.safetensors')
    cfg = dict(mean=[0.5, 0.5, 0.5], std=[0.25, 0.25, 0.25], tag='mine', license='mit')
    (tmp_path / 'config.json').write_text(json.dumps(dict(architecture='convnext_xxlarge', pretrained_cfg=cfg)))
    facts = facts_of(str(tmp_path / 'model.safetensors'))
    assert facts.statistics.mean == (127.5,) * 3 and facts.statistics.std == (63.75,) * 3
    assert facts.licence == 'MIT' and facts.arguments == dict(arch='xxlarge')


# ---- eps, norm and activation


@pytest.mark.parametrize(
    'source, options, sentence',
    [
        ('timm:convnext_xxlarge', dict(arch='xxlarge'), None),
        (
            'timm:convnext_xxlarge',
            dict(arch='xxlarge', norm_cfg=dict(type='LN')),
            r"norm_cfg=dict\(type='LN2d', eps=1e-0",
        ),
        ('timm:convnext_tiny', dict(norm_cfg=dict(type='LN2d', eps=1e-5)), "set arch='tiny' in the backbone"),
        ('timm:convnext_tiny', dict(norm_cfg=dict(type='LN', eps=1e-6)), None),
        (
            'timm:test_convnext3',
            dict(arch='test_convnext2'),
            "act_cfg=dict\\(type='SiLU'\\): set arch='test_convnext3'",
        ),
        ('timm:convnext_zepto_rms', dict(arch='zepto_rms', norm_cfg=dict(type='RMSNorm')), "type='SimpleNorm'"),
    ],
)
def test_another_eps_norm_or_activation_is_an_error(source, options, sentence):
    with torch.device('meta'):
        model = ConvNeXt(**options)
    if sentence is None:
        model.take_facts(source, known_weights(source))
        return
    with pytest.raises(UserError, match=sentence):
        model.take_facts(source, known_weights(source))


def test_what_a_file_does_not_say_is_announced(logged):
    state = ConvNeXt('test_convnext').state_dict()
    ConvNeXt(dict(depths=[1, 2, 4, 2], channels=[24, 32, 48, 64])).load_state_dict(state)
    assert "eps, kind of norm and activation are not in the file (arch='test_convnext'" in logged[-1]
    ConvNeXt('test_convnext').load_state_dict(state)
    assert 'eps' not in logged[-1]


# ---- the swap


@pytest.mark.parametrize(
    'weights, statistics', [('timm:convnext_tiny.fb_in1k', IMAGENET), ('timm:convnext_base.clip_laion2b', CLIP)]
)
def test_swap_writes_the_statistics_of_the_weights(weights, statistics):
    pytest.importorskip('mmdet')
    cfg = Config.fromfile(ROOT / 'configs/mask_rcnn/convnext_t_3x_coco.py')
    arch = 'base' if 'base' in weights else 'tiny'
    preprocessor = swap_backbone(cfg, arch, weights).model.data_preprocessor
    assert preprocessor.mean == list(statistics.mean) and preprocessor.std == list(statistics.std)


def test_eupe_files_hold_further_parts(tmp_path):
    """Projectors and norms of its distillation, which are no part of a backbone; a part of no known kind is refused."""
    state = imagenet()['model']
    for stage in range(4):
        state |= {f'norms.{stage}.weight': torch.ones(8), f'norms.{stage}.bias': torch.zeros(8)}
    state |= {'projectors.vit.mlp.0.weight': torch.ones(4, 8), 'projectors.vit.mlp.0.bias': torch.ones(4)}
    path = tmp_path / 'EUPE-ConvNeXt-X.pt'
    torch.save(state, path)
    model = ConvNeXt(MICRO, init_cfg=dict(type='Pretrained', checkpoint=str(path)))
    model.init_weights()
    assert torch.equal(model.stages[0][0].pwconv1.weight, state['stages.0.0.pwconv1.weight'])
    torch.save(state | {'adapters.0.weight': torch.ones(1)}, path)
    with pytest.raises(UserError, match='adapters.0.weight'):
        ConvNeXt(MICRO, init_cfg=dict(type='Pretrained', checkpoint=str(path))).init_weights()
