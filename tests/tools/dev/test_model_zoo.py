"""The model index, the tables of README and docs, and their pictures, against the published figures."""

import csv
import functools
import re
import runpy
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from helpers import ROOT

from convnext_dense import ARCHS, complexity

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')
with (ROOT / 'tests' / 'reference' / 'published_results.csv').open(newline='') as file:
    PUBLISHED = list(csv.DictReader(file))
FOLDERS = {'mask_rcnn': 'Mask R-CNN 3x', 'cascade_mask_rcnn': 'Cascade Mask R-CNN 3x', 'upernet': 'UperNet 160k'}
LATER_FOLDERS = ('convnext_v2', 'dinov3', 'eupe', 'clip', 'modern_heads')
NON_COMMERCIAL = ('convnext_v2', 'eupe')
CLASSIFIERS = [row for row in PUBLISHED if row['method'] in ('ImageNet-1K 224', 'ImageNet-1K 384')]
MODELS = {
    (re.sub(r' \d+$', '', row['method']), row['backbone'], row['pretrain']): row
    for row in PUBLISHED
    if not row['method'].startswith('ImageNet')
}
# What the published tables print of each row, under the names of the model index.
METRICS = {'box AP': 'box_ap', 'mask AP': 'mask_ap', 'mIoU': 'miou', 'mIoU (ms+flip)': 'miou_ms'}
PARAMS, FLOPS = 'Published Parameters (M)', 'Published FLOPs (G)'
# One of each kind.
FEW = (
    'mask_rcnn/swin_t_3x_coco.py',
    'mask_rcnn/convnext_t_3x_coco.py',
    'cascade_mask_rcnn/r50_3x_coco.py',
    'upernet/convnext_t_512_160k_ade20k.py',
    'upernet/swin_l_in22k_640_160k_ade20k.py',
)
# One of each later folder.
FEW_LATER = (
    'convnext_v2/mask_rcnn_b_3x_coco.py',
    'dinov3/linear_t_512_40k_ade20k.py',
    'eupe/linear_t_512_40k_ade20k.py',
    'clip/upernet_b_512_160k_ade20k.py',
    'modern_heads/dino_4scale_t_12e_coco.py',
)


def metafile(folder: str) -> dict:
    return yaml.safe_load((ROOT / 'configs' / folder / 'metafile.yml').read_text())


def models() -> dict[tuple[str, str, str], dict]:
    """Rows of the model index by method, backbone and pretraining."""
    found = {}
    for folder, method in FOLDERS.items():
        for model in metafile(folder)['Models']:
            pretrain = 'in' + model['Metadata']['Pretraining'].removeprefix('ImageNet-').lower()
            method_of_row = method.replace('3x', '1x') if '_1x_' in model['Name'] else method
            found[method_of_row, model['Metadata']['Backbone'], pretrain] = model
    return found


def reproduced(measured: float, published: str) -> bool:
    """Within 0.5 %, or 1 in the last digit that is printed."""
    last_digit = 10.0 ** -len(published.partition('.')[2])
    return abs(measured - float(published)) <= max(0.005 * float(published), last_digit)


def test_published_figures_are_those_of_the_reference():
    ours = models()
    assert MODELS.keys() <= ours.keys() and len(MODELS) == 27
    for key, model in ours.items():
        row, metadata = MODELS.get(key), model['Metadata']
        metrics = {name: value for result in model.get('Results', ()) for name, value in result['Metrics'].items()}
        if row is None:
            assert metrics == {} and not {PARAMS, FLOPS} & metadata.keys() and 'not in the paper' in metadata['Source']
            continue
        assert metrics == {name: float(row[column]) for name, column in METRICS.items() if row[column]}
        assert [str(metadata.get(name, '')) for name in (PARAMS, FLOPS)] == [row['params_M'], row['flops_G']]
        assert (metadata['Input'], metadata['Source']) == (row['input'], row['source'])


@pytest.mark.parametrize('key', MODELS, ids=' '.join)
def test_published_counts_of_models_are_reproduced(key):
    """By the figures of the model index, which `tools/dev/model_zoo.py --check` measures again in CI."""
    row, metadata = MODELS[key], models()[key]['Metadata']
    flops = metadata['FLOPs']
    if 'Swin-L' in key:
        assert metadata['Published FLOPs leave out'] == 'attention products'
        flops -= metadata['Attention FLOPs']
        # Both counts.
        assert (round(metadata['FLOPs'] / 1e9), round(flops / 1e9)) == (
            (1393, 1383) if 'Cascade' in key[0] else (2486, 2470)
        )
    assert reproduced(flops / 1e9, row['flops_G'])
    assert abs(flops / 1e9 / float(row['flops_G']) - 1) < 0.002, 'all of them are far closer'
    if row['params_M']:
        assert reproduced(metadata['Parameters'] / 1e6, row['params_M'])


@pytest.mark.parametrize('row', CLASSIFIERS, ids=lambda row: f'{row["backbone"]} {row["input"]}')
def test_published_counts_of_archs_are_reproduced(row):
    sizes = {'T': 'tiny', 'S': 'small', 'B': 'base', 'L': 'large', 'XL': 'xlarge'}
    side = int(row['input'].split('x')[0])
    found = complexity.count_classifier(sizes[row['backbone'].removeprefix('ConvNeXt-')], side)
    assert reproduced(found.total_params / 1e6, row['params_M'])
    assert reproduced(found.total_flops / 1e9, row['flops_G'])


@pytest.mark.parametrize('leaf', FEW)
def test_model_index_holds_what_is_measured(leaf):
    folder = leaf.split('/')[0]
    (metadata,) = (model['Metadata'] for model in metafile(folder)['Models'] if model['Config'] == f'configs/{leaf}')
    found = complexity.count(complexity.Config.fromfile(ROOT / 'configs' / leaf))
    assert (metadata['Parameters'], metadata['FLOPs']) == (found.total_params, found.total_flops)
    assert metadata.get('Attention FLOPs', 0) == found.attention


def test_model_index_is_sound():
    """As openmim's search reads it: names once, known collections, files that exist."""
    index = yaml.safe_load((ROOT / 'convnext_dense' / '.mim' / 'model-index.yml').read_text())
    assert index['Import'] == [f'configs/{folder}/metafile.yml' for folder in (*FOLDERS, *LATER_FOLDERS)]
    names, collections = [], []
    for folder in index['Import']:
        folder = folder.split('/')[1]
        content = metafile(folder)
        collections += [collection['Name'] for collection in content['Collections']]
        for model in content['Models']:
            names.append(model['Name'])
            assert model['In Collection'] in collections and (ROOT / model['Config']).is_file()
            if folder in FOLDERS:
                of_paper = 'convnext' in model['Name'] and 'not in' not in model['Metadata']['Source']
                assert ('Weights' in model) == of_paper
    assert len(set(names)) == len(names) == 32 + 36 and len(set(collections)) == len(collections) == 3 + 6


def test_licence_of_every_later_model():
    """In the index and in the tables; bold where it excludes commercial use."""
    page = (ROOT / 'docs' / 'reference' / 'model_zoo.md').read_text()
    licences = {}
    for folder in LATER_FOLDERS:
        for model in metafile(folder)['Models']:
            licence = model['Metadata']['Licence of Weights']
            licences.setdefault(folder, set()).add(licence)
            (row,) = (line for line in page.splitlines() if f'(../../{model["Config"]})' in line)
            cell = f'**{licence}**' if folder in NON_COMMERCIAL else licence
            assert f'| {cell} | {model["Metadata"]["Source"]} |' in row
    assert licences == {
        'convnext_v2': {'CC BY-NC 4.0, not for commercial use'},
        'dinov3': {'DINOv3 License, whose terms go with the weights and with what is made of them'},
        'eupe': {'FAIR Noncommercial Research License, not for commercial use'},
        'clip': {'Apache 2.0'},
        'modern_heads': {'MIT'},
    }


def test_published_figures_of_later_models():
    """arXiv 2301.00808 tables 6 and 7; 2508.10104; 2603.22387 table 6; the model zoo of detrex."""
    published = {}
    for folder in LATER_FOLDERS:
        for model in metafile(folder)['Models']:
            metrics = [value for result in model.get('Results', ()) for value in result['Metrics'].values()]
            assert bool(metrics) == ('ours' not in model['Metadata']['Source'])
            if metrics:
                published[model['Config'].removeprefix('configs/').split('_3x')[0].split('_ade')[0]] = metrics
    assert published == {
        'convnext_v2/mask_rcnn_b': [52.9, 46.6],
        'convnext_v2/mask_rcnn_l': [54.4, 47.7],
        'convnext_v2/mask_rcnn_h': [55.7, 48.9],
        'convnext_v2/upernet_b_512_160k': [52.1],
        'convnext_v2/upernet_l_512_160k': [53.7],
        'convnext_v2/upernet_h_512_160k': [55.0],
        'convnext_v2/upernet_h_in22k_640_160k': [57.0],
        'dinov3/linear_t_512_40k': [42.7],
        'dinov3/linear_s_512_40k': [44.8],
        'dinov3/linear_b_512_40k': [46.3],
        'dinov3/linear_l_512_40k': [47.8],
        'eupe/linear_t_512_40k': [43.5],
        'eupe/linear_s_512_40k': [46.8],
        'eupe/linear_b_512_40k': [48.9],
        'modern_heads/dino_4scale_t_12e_coco.py': [51.4],
    }


def test_tables_and_picture_belong_to_the_model_index(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'tools' / 'dev'))  # as for a script
    zoo = runpy.run_path(str(ROOT / 'tools' / 'dev' / 'model_zoo.py'))
    folders = {folder: metafile(folder) for folder in FOLDERS}
    later = {folder: metafile(folder) for folder in LATER_FOLDERS}
    for page, tables in (
        ('README.md', {'models': zoo['short_table'](folders)}),
        ('docs/reference/model_zoo.md', zoo['model_tables'](folders) | zoo['later_tables'](later)),
        ('docs/reference/benchmarks.md', {'performance': zoo['performance_table']()}),
        ('docs/guides/memory_and_speed.md', {'memory': zoo['memory_table']()}),
    ):
        assert zoo['with_tables'](ROOT / page, tables) == (ROOT / page).read_text()
    readme = (ROOT / 'README.md').read_text()
    rows = re.findall(r'^\| \[.*\((configs/.*)\) \| (\d+K) \| ([\d.]+) \|', readme, re.M)
    # Box AP of detectors, single-scale mIoU of segmentors, from the published tables.
    assert rows == [
        ('configs/mask_rcnn/convnext_t_3x_coco.py', '1K', '46.2'),
        ('configs/cascade_mask_rcnn/convnext_t_3x_coco.py', '1K', '50.4'),
        ('configs/cascade_mask_rcnn/convnext_b_3x_coco.py', '1K', '52.7'),
        ('configs/upernet/convnext_t_512_160k_ade20k.py', '1K', '46.0'),
        ('configs/upernet/convnext_b_in22k_640_160k_ade20k.py', '22K', '52.6'),
    ]
    picture = (ROOT / 'docs' / 'model_zoo.svg').read_text()
    assert zoo['digest_of'](zoo['points'](folders)) in picture and len(picture) < 200_000
    page = (ROOT / 'docs' / 'reference' / 'model_zoo.md').read_text()
    archs = page[page.index('<!-- archs') : page.index('<!-- end of archs')]
    assert set(ARCHS) == set(re.findall(r'^\| `(\w+)`', archs, re.M))
    isotropic = [row for row in PUBLISHED if 'isotropic' in row['method']]
    # Counted at 224x224 by an independent formula: 22,308,712 / 87,083,752 / 305,942,504 parameters.
    counted = [('22', '22.3', '4.3', '4.3'), ('87', '87.1', '16.9', '16.9'), ('306', '305.9', '59.7', '59.7')]
    for arch, row, cells in zip(('small', 'base', 'large'), isotropic, counted, strict=True):
        assert (row['params_M'], row['flops_G']) == cells[::2]
        assert re.search(rf'^\| isotropic `{arch}` \|.*\| {" | ".join(cells)} \|'.replace(' | ', r' \| '), archs, re.M)


@pytest.fixture(scope='module')
def small_zoo(tmp_path_factory) -> Path:
    """A repository with few models."""
    folder = tmp_path_factory.mktemp('zoo')
    for name in (
        'tools/dev/model_zoo.py',
        'tools/dev/roadmap_figure.py',
        'docs/design/roadmap.md',
        'docs/reference/model_zoo.md',
        'docs/reference/benchmarks.md',
        'docs/guides/memory_and_speed.md',
        'README.md',
        'tests/reference/published_results.csv',
        *(f'configs/{leaf}' for leaf in (*FEW, *FEW_LATER)),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(ROOT / 'configs' / '_base_', folder / 'configs' / '_base_')
    shutil.copytree(ROOT / 'docs' / 'benchmarks', folder / 'docs' / 'benchmarks')
    few = {f'configs/{leaf}' for leaf in (*FEW, *FEW_LATER)}
    for name in (*FOLDERS, *LATER_FOLDERS):
        content = metafile(name)
        content['Models'] = [model for model in content['Models'] if model['Config'] in few]
        (folder / 'configs' / name / 'metafile.yml').write_text('# a comment\n' + yaml.safe_dump(content))
    return folder


def test_write_and_check(small_zoo, monkeypatch, capsys):
    # Read and measured once for all runs.
    read = functools.cache(complexity.Config.fromfile)
    monkeypatch.setattr(complexity.Config, 'fromfile', read)
    count, count_by_name = complexity.count, functools.cache(lambda name: count(read(name)))
    monkeypatch.setattr(complexity, 'count', lambda cfg: count_by_name(Path(cfg.filename)))
    monkeypatch.setattr(complexity, 'count_classifier', functools.cache(complexity.count_classifier))

    monkeypatch.syspath_prepend(str(small_zoo / 'tools' / 'dev'))  # as for a script

    def run(*args: str) -> str:
        monkeypatch.setattr(sys, 'argv', ['model_zoo.py', *args])
        try:
            runpy.run_path(str(small_zoo / 'tools' / 'dev' / 'model_zoo.py'), run_name='__main__')
        except SystemExit as stop:
            return stop.code
        return capsys.readouterr().err.splitlines()[-1]

    zoo, picture = small_zoo / 'docs' / 'reference' / 'model_zoo.md', small_zoo / 'docs' / 'model_zoo.svg'
    index = small_zoo / 'configs' / 'cascade_mask_rcnn' / 'metafile.yml'
    everything = ', '.join(
        [
            *(f'configs/{folder}/metafile.yml' for folder in (*FOLDERS, *LATER_FOLDERS)),
            'README.md',
            'docs/reference/model_zoo.md',
            'docs/model_zoo.svg',
            'docs/design/roadmap.svg',
        ]
    )
    assert run('--check').startswith(f'error: {everything}: not up to date') and not picture.exists()
    assert run() == f'written: {everything}'
    assert run('--check') == run() == 'everything is up to date'
    drawn = picture.read_bytes()
    assert index.read_text().startswith('# a comment\nCollections:')

    good = zoo.read_text()
    assert '| 739 | 738.3 | -0.09 % |' in good
    zoo.write_text(good.replace('| 738.3 |', '| 739.3 |'))
    assert run('--check').startswith('error: docs/reference/model_zoo.md: not up to date')
    assert run() == 'written: docs/reference/model_zoo.md' and zoo.read_text() == good

    # A config that is not what its row says.
    indexed = index.read_text()
    for wrong in (indexed.replace('Parameters: 8', 'Parameters: 9'), indexed.replace('ResNet-50', 'ResNet-101')):
        assert wrong != indexed
        index.write_text(wrong)
        assert run('--check').startswith('error: configs/cascade_mask_rcnn/metafile.yml: not up to date')
    index.write_text(indexed)

    # A published figure that changes goes into tables and picture.
    index.write_text(indexed.replace('box AP: 46.3', 'box AP: 46.4'))
    assert run('--check').startswith('error: docs/reference/model_zoo.md, docs/model_zoo.svg: not up to date')
    index.write_text(indexed)
    picture.unlink()
    assert run() == 'written: docs/model_zoo.svg' and picture.read_bytes() == drawn, 'the same in each run'

    roadmap = small_zoo / 'docs' / 'design' / 'roadmap.svg'
    drawn = roadmap.read_text()
    assert drawn.count('ConvNeXt-T') == drawn.count('82.71') == 1 and '81.97' in drawn and '4.46 G, 28.6 M' in drawn
    roadmap.write_text(re.sub(r'<dc:description>\w+', '<dc:description>0', drawn))
    assert run('--check').startswith('error: docs/design/roadmap.svg: not up to date')
    assert run() == 'written: docs/design/roadmap.svg' and roadmap.read_text() == drawn

    leaf = small_zoo / 'configs' / 'cascade_mask_rcnn' / 'r50_3x_coco.py'
    leaf.rename(leaf.with_name('r18_3x_coco.py'))
    assert re.match(
        r'error: configs/cascade_mask_rcnn/metafile.yml and the configs beside it differ in '
        r"\['configs/cascade_mask_rcnn/r18_3x_coco.py', 'configs/cascade_mask_rcnn/r50_3x_coco.py'\]",
        run('--check'),
    )
    leaf.with_name('r18_3x_coco.py').rename(leaf)
    zoo.write_text(good.replace('<!-- archs:', '<!-- arch:'))
    assert 'docs/reference/model_zoo.md has no markers for the table of archs' in run()
