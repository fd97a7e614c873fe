"""The configs that README and docs show run as they are printed there."""

import re

import pytest
from helpers import ROOT
from mmengine.config import Config

import convnext_dense
import convnext_dense.runtime

pytest.importorskip('mmdet')
PAGES = (ROOT / 'README.md', *sorted((ROOT / 'docs').rglob('*.md')))
SNIPPETS = {
    match[1]: match[0]
    for page in PAGES
    for match in re.finditer(r'(?<=```python\n)# (\w+\.py): .*?(?=```)', page.read_text(), re.S)
}
# Less of everything: what is shown is the change, not the size.
SMALL = (
    'model.backbone.init_cfg=None',
    'model.backbone.arch=atto',
    'model.neck.in_channels=[40,80,160,320]',
    'train_cfg.max_epochs=1',
    'model.test_cfg.rpn.max_per_img=20',
    'default_hooks.logger.interval=1',
    *(
        f'{split}_dataloader.{option}'
        for split in ('train', 'val')
        for option in ('num_workers=0', 'persistent_workers=False')
    ),
)
# On images of a fraction of the size, but for the snippet that is about size.
SMALL_IMAGES = """
_base_ = '{name}'
load = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask={with_mask}),
    dict(type='Resize', scale=(160, 128), keep_ratio=True),
]
meta = dict(meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'flip', 'flip_direction'))
train_dataloader = dict(dataset=dict(pipeline=[*load, dict(type='PackDetInputs')]))
val_dataloader = dict(dataset=dict(pipeline=[*load, dict(type='PackDetInputs', **meta)]))
"""


def test_version_is_the_first_of_the_changelog():
    versions = re.findall(r'^## \[([\d.]+)\]', (ROOT / 'CHANGELOG.md').read_text(), re.M)
    assert versions == ['0.2.0', '0.1.0'] and convnext_dense.__version__ == versions[0]


def test_readme_is_short():
    lines = (ROOT / 'README.md').read_text().splitlines()
    assert len(lines) <= 150 and max(map(len, lines)) <= 120


def test_versions_that_were_run_are_the_pinned_ones():
    table = (ROOT / 'README.md').read_text().partition('## Supported versions')[2].partition('\n## ')[0]
    run_here = dict(re.findall(r'^\| (?:mmcv or )?([\w-]+) \|.*\| ([\d.]+) \|$', table, re.M))
    pins = dict(re.findall(r'^([\w-]+)==([^\s;]+)', (ROOT / 'constraints.txt').read_text(), re.M))
    assert set(run_here) == {'Python', 'torch', 'mmengine', 'mmcv-lite', 'mmdet', 'mmsegmentation'}
    assert {name: pins[name] for name in run_here if name != 'Python'} == {
        name: version for name, version in run_here.items() if name != 'Python'
    }


@pytest.mark.parametrize('name', ['README.md', 'CONTRIBUTING.md', 'SECURITY.md'])
def test_links_lead_to_files(name):
    links = re.findall(r'\]\((?!https?://)([^)#]+)', (ROOT / name).read_text())
    assert links or name == 'SECURITY.md'
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_reference_has_every_tool():
    page = (ROOT / 'docs' / 'reference' / 'command_lines.md').read_text()
    shown = re.findall(r'^```\{command-line\} (\S+\.py)', page, re.M)
    tools = [f'tools/{path.name}' for path in (ROOT / 'tools').glob('[!_]*.py')]
    assert {*shown} == {*tools, 'convnext_dense/cli.py'}


def test_reference_has_every_public_name():
    page = (ROOT / 'docs' / 'reference' / 'api.md').read_text()
    shown = re.findall(r'^\.\. (?:py:data|auto\w+):: ([\w.]+)', page, re.M)
    assert {*convnext_dense.__all__, *convnext_dense.runtime.__all__} <= {*shown}


def test_snippets_are_found():
    assert set(SNIPPETS) == {'own_classes.py', 'boxes_only.py', 'one_gpu.py', 'other_size.py'}


@pytest.mark.parametrize('name', sorted(SNIPPETS))
def test_snippet(name, official_names, tmp_path, tool):
    (tmp_path / 'configs').symlink_to(ROOT / 'configs')
    config = tmp_path / name
    config.write_text(SNIPPETS[name])
    if name != 'other_size.py':
        config = tmp_path / 'small_images.py'
        config.write_text(SMALL_IMAGES.format(name=name, with_mask=name != 'boxes_only.py'))
    message, text = tool('train', config, '--work-dir', tmp_path / 'work', '--cfg-options', *SMALL, data=official_names)
    assert message is None
    table = text.split('\n\n')[-2]
    assert 'box' in table and ('mask' in table) == (name != 'boxes_only.py')
    cfg = Config.fromfile(tmp_path / 'work' / config.name)
    if name == 'one_gpu.py':
        assert re.search(r'LR is set based on batch size of 16 and the current batch size is 4', log_of(tmp_path))
    if name == 'own_classes.py':
        heads = [*cfg.model.roi_head.bbox_head, cfg.model.roi_head.mask_head]
        assert [head.num_classes for head in heads] == [2] * 4
    if name == 'other_size.py':
        for split in ('train', 'val', 'test'):
            assert [step.scale for step in cfg[f'{split}_dataloader'].dataset.pipeline if 'Resize' in step.type] == [
                (640, 640)
            ]


def log_of(folder) -> str:
    return next((folder / 'work').glob('*/*.log')).read_text()
