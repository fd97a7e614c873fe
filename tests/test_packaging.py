"""The wheel, and our configs from any folder and in the toolkits' own tools."""

import configparser
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import sklearn.datasets
from helpers import ROOT
from packaging import version

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')
USERS_TOOLS = (
    'tools/_arguments.py',
    'tools/convert_checkpoint.py',
    'tools/dataset.py',
    'tools/demo.py',
    'tools/dist_test.sh',
    'tools/dist_train.sh',
    'tools/doctor.py',
    'tools/export.py',
    'tools/get_flops.py',
    'tools/install_mmcv.py',
    'tools/new_config.py',
    'tools/predict.py',
    'tools/report.py',
    'tools/slurm_train.sh',
    'tools/swap_backbone.py',
    'tools/test.py',
    'tools/train.py',
)
QUICK_DET = ('train_cfg.max_epochs=1', 'train_cfg.val_interval=1')
QUICK_SEG = ('train_cfg.max_iters=2', 'train_cfg.val_interval=2', 'default_hooks.checkpoint.interval=2')


@pytest.fixture(scope='module')
def wheel(tmp_path_factory) -> Path:
    """Built from the files that git would hand to a user."""
    folder = tmp_path_factory.mktemp('wheel')
    source = folder / 'source'
    files = subprocess.run(
        ['git', 'ls-files', '-co', '--exclude-standard'], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split('\n')
    for name in filter(None, files):
        if not (ROOT / name).exists():
            continue
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_symlink():
            (source / name).symlink_to((ROOT / name).readlink())
        else:
            (source / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run(
        [
            sys.executable,
            '-m',
            'pip',
            'wheel',
            '-q',
            '--no-deps',
            '--no-build-isolation',
            '-w',
            str(folder),
            str(source),
        ],
        check=True,
    )
    return next(folder.glob('*.whl'))


@pytest.fixture(scope='module')
def installed(wheel, tmp_path_factory) -> Path:
    """A folder with the wheel's content, to stand before everything else on the path."""
    folder = tmp_path_factory.mktemp('site')
    subprocess.run(
        [sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--target', str(folder), str(wheel)], check=True
    )
    return folder


def run(*command: object, data: Path, cwd: Path, path: Path | None = None) -> str:
    env = dict(os.environ, CONVNEXT_DENSE_DATA=str(data))
    if path:
        env['PYTHONPATH'] = str(path)
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        env=env,
        cwd=cwd,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


def test_content_of_the_wheel(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split('/')[0] for name in names} == {
        'convnext_dense',
        'convnext_dense-0.2.0.data',
        'convnext_dense-0.2.0.dist-info',
    }
    assert [name for name in names if '.data/' in name] == ['convnext_dense-0.2.0.data/scripts/convnext-dense']
    assert {name for name in names if '/.mim/' in name} == {
        f'convnext_dense/.mim/{name}'
        for name in (
            *USERS_TOOLS,
            *(
                str(path.relative_to(ROOT))
                for path in (ROOT / 'configs').rglob('*.*')
                if path.suffix in ('.py', '.yml')
            ),
            'model-index.yml',
        )
    }, "the configs and the users' tools, none for maintainers"
    modules = {
        str(path.relative_to(ROOT)) for path in (ROOT / 'convnext_dense').rglob('*.py') if '.mim' not in path.parts
    }
    assert {name for name in names if name.endswith('.py') and '/.mim/' not in name} == modules
    assert {'convnext_dense/weights/official_weights.txt', 'convnext_dense/py.typed'} <= names
    assert not [name for name in names if 'benchmark' in name or 'tests' in name or 'model_zoo' in name]
    metadata = zipfile.ZipFile(wheel).read('convnext_dense-0.2.0.dist-info/METADATA').decode()
    needs = [line for line in metadata.splitlines() if line.startswith('Requires-Dist') and 'extra' not in line]
    assert needs == [], 'nothing that could replace a toolkit that is there, and no torch for the runtime'


@pytest.mark.slow
@pytest.mark.parametrize('form', ["'convnext_dense::cascade_mask_rcnn/convnext_t_3x_coco.py'"])
def test_leaf_in_another_folder(form, installed, official_names, tmp_path):
    """A leaf of the user's on the installed package, own classes, through the installed tools to metrics."""
    (tmp_path / 'leaf.py').write_text(f"""_base_ = {form}
data = dict(metainfo=dict(classes=('person', 'bicycle', 'car')))
heads = [dict(head, num_classes=3) for head in _base_.model.roi_head.bbox_head]
model = dict(backbone=dict(arch='atto', init_cfg=None), neck=dict(in_channels=[40, 80, 160, 320]),
             roi_head=dict(bbox_head=heads, mask_head=dict(num_classes=3)), test_cfg=dict(rpn=dict(max_per_img=20)))
val_dataloader = test_dataloader = dict(dataset=data)
load, annotations, flip = _base_.train_pipeline[:3]
pipeline = [load, annotations, dict(type='Resize', scale=(160, 128)), flip, _base_.train_pipeline[-1]]
train_dataloader = dict(dataset=dict(pipeline=pipeline, **data))
train_cfg = dict(max_epochs=1)
""")
    text = run(
        installed / 'convnext_dense/.mim/tools/train.py', 'leaf.py', data=official_names, cwd=tmp_path, path=installed
    )
    assert 'Failed to search registry' not in text and 'warning: no page' not in text
    assert (tmp_path / 'work_dirs' / tmp_path.name / 'leaf/report.html').is_file()
    assert 'coco/bbox_mAP' in json.loads((tmp_path / 'work_dirs' / tmp_path.name / 'leaf/metrics.json').read_text())
    photograph = Path(sklearn.datasets.__file__).parent / 'images/china.jpg'
    run(
        installed / 'convnext_dense/.mim/tools/predict.py',
        'leaf.py',
        f'work_dirs/{tmp_path.name}/leaf/epoch_1.pth',
        photograph,
        '--out',
        'predicted',
        data=official_names,
        cwd=tmp_path,
        path=installed,
    )
    predicted = json.loads(next((tmp_path / 'predicted').glob('*.json')).read_text())
    assert [(image['width'], image['height']) for image in predicted['images']] == [(640, 427)]
    assert [category['name'] for category in predicted['categories']] == ['person', 'bicycle', 'car']


@pytest.mark.slow
@pytest.mark.parametrize(
    'toolkit, leaf, options',
    [
        ('mmdet', 'mask_rcnn/convnext_digits.py', QUICK_DET),
        ('mmseg', 'upernet/convnext_digits.py', QUICK_SEG),
        (
            'mmseg',
            'upernet/convnext_t_512_160k_ade20k.py',
            (
                *QUICK_SEG,
                'optim_wrapper.type=OptimWrapper',
                'model.backbone.init_cfg=None',
                'model.backbone.arch=atto',
                'model.decode_head.in_channels=[40,80,160,320]',
                'model.auxiliary_head.in_channels=160',
                'model.decode_head.norm_cfg.type=BN',
                'model.auxiliary_head.norm_cfg.type=BN',
                'model.decode_head.channels=32',
            ),
        ),
    ],
)
def test_toolkits_own_train_script(toolkit, leaf, options, digits, official_names, tmp_path):
    module = __import__(toolkit)
    script = Path(module.__file__).parent / '.mim/tools/train.py'
    data = digits if 'digits' in leaf else official_names
    text = run(
        script, ROOT / 'configs' / leaf, '--work-dir', tmp_path, '--cfg-options', *options, data=data, cwd=tmp_path
    )
    assert 'layer decay: ' in text and ('coco/bbox_mAP' in text or 'mIoU: ' in text)


@pytest.mark.slow
@pytest.mark.parametrize(
    'toolkit, base, options',
    [
        ('mmdet', 'mask_rcnn/convnext_digits.py', QUICK_DET),
        ('mmseg', 'upernet/convnext_digits.py', QUICK_SEG),
    ],
)
def test_toolkits_own_train_script_with_variables_of_a_base(toolkit, base, options, digits, tmp_path):
    """Their transforms are found, although mmengine looks for them in the scope convnext_dense."""
    (tmp_path / 'leaf.py').write_text(f"""_base_ = __import__('convnext_dense') and 'convnext_dense::{base}'
train_dataloader = dict(dataset=dict(pipeline=[*_base_.train_pipeline]))
""")
    script = Path(__import__(toolkit).__file__).parent / '.mim/tools/train.py'
    text = run(script, 'leaf.py', '--work-dir', 'work', '--cfg-options', *options, data=digits, cwd=tmp_path, path=ROOT)
    assert 'coco/bbox_mAP' in text or 'mIoU: ' in text


@pytest.mark.slow
def test_no_extra_brings_a_second_opencv_or_older_packages():
    """What uv resolves for all extras of users together, with the constraints and without."""
    config = configparser.ConfigParser()
    config.read(ROOT / 'setup.cfg')
    extras = sorted(set(config['options.extras_require']) - {'onedl', 'test', 'benchmark'})
    uv = Path(sys.executable).with_name('uv')
    command = [str(uv), 'pip', 'compile', '-q', '--no-header', '--no-annotate', 'setup.cfg', '--python', sys.executable]
    for extra in extras:
        command += ['--extra', extra]
    pins = dict(re.findall(r'^([\w-]+)==([^\s;]+)', (ROOT / 'constraints.txt').read_text(), re.M))
    pinned = subprocess.run([*command, '-c', 'constraints.txt'], cwd=ROOT, text=True, capture_output=True, check=True)
    newest = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=True)
    for done in (pinned, newest):
        found = dict(re.findall(r'^([\w-]+)==(\S+)', done.stdout, re.M))
        assert [name for name in found if name.startswith('opencv')] == ['opencv-python']
        for name in ('pillow', 'numpy', 'transformers'):
            if name in found:
                assert version.parse(found[name]) >= version.parse(pins[name]), name
