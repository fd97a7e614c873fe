"""What a config takes from a base ``convnext_dense::...`` is built as the toolkit of the run means it."""

import importlib

import mmcv.transforms
import pytest
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.registry import DATASETS, MODELS, TRANSFORMS, DefaultScope, Registry

from convnext_dense import ConvNeXt, UserError
from convnext_dense.engine.scope import SCOPE, scope_of_run
from convnext_dense.run.options import read_config

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')
DETECTOR = """_base_ = 'convnext_dense::mask_rcnn/convnext_t_3x_coco.py'
load, annotations, flip = _base_.train_pipeline[:3]
pipeline = [load, annotations, dict(type='Resize', scale=(96, 96)), flip, _base_.train_pipeline[-1]]
train_dataloader = dict(dataset=dict(pipeline=pipeline))
backbone = _base_.model.backbone
"""
SEGMENTOR = """_base_ = 'convnext_dense::upernet/convnext_b_in22k_640_160k_ade20k.py'
load, annotations, resize = _base_.train_pipeline[:3]
pipeline = [load, annotations, resize, *_base_.train_pipeline[3:]]
train_dataloader = dict(dataset=dict(pipeline=pipeline))
"""
TOOLKITS = {'mmdet': DETECTOR, 'mmseg': SEGMENTOR}


@pytest.fixture
def run(request):
    """Name the default scope and the message hub of a run as mmengine's runner does."""

    def start(scope: str) -> None:
        name = f'{request.node.name}_{scope}'
        importlib.import_module(f'{scope}.utils').register_all_modules(init_default_scope=False)
        DefaultScope.get_instance(name, scope_name=scope)
        MessageHub.get_instance(name)

    # Default scopes that are made inside are forgotten after it.
    with DefaultScope.overwrite_default_scope('mmengine'):
        yield start


@pytest.mark.parametrize('toolkit', TOOLKITS)
def test_pipeline_of_a_base(toolkit, run, official_names, tmp_path, monkeypatch):
    """The transforms of mmdet and mmseg, which both have names that mmcv has too."""
    monkeypatch.setenv('CONVNEXT_DENSE_DATA', str(official_names))
    (tmp_path / 'mine.py').write_text(TOOLKITS[toolkit])
    cfg = Config.fromfile(tmp_path / 'mine.py')
    scopes = [step.get('_scope_') for step in cfg.pipeline]
    assert scopes.count(SCOPE) >= 4, 'mmengine has set it'
    run(toolkit)
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    kinds = {type(step).__name__: type(step) for step in dataset.pipeline.transforms}
    assert kinds['LoadAnnotations'].__module__.split('.')[0] == toolkit
    assert kinds['LoadImageFromFile'] is mmcv.transforms.LoadImageFromFile
    assert dataset[0]['inputs'].ndim == 3
    if toolkit == 'mmdet':
        assert kinds['RandomFlip'].__module__.startswith('mmdet.')
        backbone = cfg.backbone | dict(init_cfg=None, arch='atto', _scope_=SCOPE)
        assert type(MODELS.build(backbone)) is ConvNeXt


@pytest.mark.parametrize('toolkit', TOOLKITS)
def test_tools_need_no_scope(toolkit, tmp_path):
    (tmp_path / 'mine.py').write_text(TOOLKITS[toolkit])
    cfg = read_config(str(tmp_path / 'mine.py'))
    assert "'_scope_': 'convnext_dense'" not in str(cfg.to_dict())
    assert [step.type for step in cfg.pipeline][:2] == ['LoadImageFromFile', 'LoadAnnotations']


def test_names_with_a_scope_and_without_a_class(run):
    run('mmdet')
    registry = TRANSFORMS.children[SCOPE]
    assert registry.get('mmseg.LoadAnnotations').__module__.startswith('mmseg.')
    assert registry.get('LoadAnnotations').__module__.startswith('mmdet.')
    assert registry.get('NoSuchTransform') is None
    run('mmseg')
    assert registry.get('LoadAnnotations').__module__.startswith('mmseg.')


def test_scope_without_a_runner(monkeypatch):
    """The default scope has the name of its toolkit then; two of them need a word of the user."""
    created = set()
    monkeypatch.setattr(DefaultScope, 'check_instance_created', lambda name: name in created)
    assert scope_of_run(['mmdet', 'mmseg'], 'Resize') is None
    created.add('mmdet')
    assert scope_of_run(['mmdet', 'mmseg'], 'Resize') == 'mmdet'
    created.add('mmseg')
    with pytest.raises(
        UserError, match="default scopes mmdet and mmseg were set up in this process: write type='mmdet"
    ):
        scope_of_run(['mmdet', 'mmseg'], 'Resize')


def test_every_root_registry_has_the_scope():
    from mmengine.registry import root

    registries = [value for value in vars(root).values() if isinstance(value, Registry)]
    assert len(registries) > 15 and all(SCOPE in registry.children for registry in registries)
