"""Who provides ``mmcv._ext``, and what mmengine makes of it."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.model import revert_sync_batchnorm

from convnext_dense.errors import UserError
from convnext_dense.mmcv_ops import mixed_distributions
from convnext_dense.mmcv_ops.finder import ExtensionFinder, ExtensionLoader, install

ROOT = Path(__file__).parents[2]
# A package ``mmcv`` without operators, and one with a compiled module.
LITE = {'mmcv/__init__.py': ''}
FULL = {'mmcv/__init__.py': '', 'mmcv/_ext.py': 'compiled = True'}


def run(code: str, folder: Path, files: dict[str, str]) -> str:
    """What ``code`` prints in a new interpreter that finds ``files`` first."""
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    prepare = f"""
import sys
sys.path[:0] = [{str(folder)!r}, {str(ROOT)!r}]
# The folder of our package, without its __init__.
import types
package = types.ModuleType('convnext_dense')
package.__path__ = [{str(ROOT / 'convnext_dense')!r}]
sys.modules['convnext_dense'] = package
from convnext_dense.mmcv_ops import *
"""
    done = subprocess.run([sys.executable, '-c', prepare + code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_compiled_module_wins(tmp_path):
    text = run('install(); import mmcv._ext; print(mmcv._ext.compiled, operators_in_use()[:9])', tmp_path, FULL)
    assert text == 'True compiled:'


def test_nothing_is_imported_before_it_is_asked_for(tmp_path):
    code = """
install()
names = {'torch', 'torchvision', 'mmcv', 'mmengine', 'numpy'}
print(sorted(names & set(sys.modules)))
operators_in_use()
print(sorted(names & set(sys.modules)))
import mmcv._ext
print('torch' in sys.modules, 'torchvision' in sys.modules)
import torch
mmcv._ext.nms(torch.zeros(1, 4), torch.zeros(1), 0.5, 0)
print('torchvision' in sys.modules)
"""
    assert run(code, tmp_path, LITE).split('\n') == ['[]', "['mmcv']", 'True False', 'True']


def test_the_finder_is_installed_once_and_last(tmp_path):
    code = """
install(); install()
print([type(finder).__name__ for finder in sys.meta_path].count('ExtensionFinder'), type(sys.meta_path[-1]).__name__)
"""
    assert run(code, tmp_path, LITE) == '1 ExtensionFinder'


@pytest.mark.parametrize(
    'code, files, line',
    [
        ('pass;', {'mmcv/__init__.py': 'raise ModuleNotFoundError("no", name="mmcv")'}, 'none: mmcv is not installed'),
        ('pass;', LITE, 'and convnext_dense.mmcv_ops.install() was not called'),
        ('install();', LITE, 'provided: '),
    ],
)
def test_operators_in_use(tmp_path, code, files, line):
    assert line in run(f'{code} print(operators_in_use())', tmp_path, files)


def test_the_module_has_a_spec_with_a_loader(extension):
    assert isinstance(extension.__spec__.loader, ExtensionLoader)
    assert extension.__name__ == 'mmcv._ext'


def test_the_finder_knows_no_other_module():
    for name in ('mmcv', 'mmcv.ops', '_ext', 'mmdet._ext'):
        assert ExtensionFinder().find_spec(name) is None


def test_mmengine_gives_offsets_a_learning_rate_of_their_own():
    """It does so only where it takes mmcv for complete, which asks the spec for a loader."""
    install()
    pytest.importorskip('mmcv.ops')
    from mmcv.ops import DeformConv2dPack
    from mmengine.optim import build_optim_wrapper
    from mmengine.utils.dl_utils import mmcv_full_available

    assert mmcv_full_available()
    model = torch.nn.Sequential(DeformConv2dPack(2, 2, 3), torch.nn.Conv2d(2, 2, 1))
    options = dict(optimizer=dict(type='SGD', lr=1.0), paramwise_cfg=dict(dcn_offset_lr_mult=0.1))
    wrapper = build_optim_wrapper(model, options)
    rates = {}
    for group in wrapper.optimizer.param_groups:
        rates.update((parameter, group['lr']) for parameter in group['params'])
    assert rates[model[0].conv_offset.weight] == 0.1 and rates[model[1].weight] == 1.0


def test_mmengine_turns_mmcvs_sync_bn_into_batch_normalization(ops, one_process):
    layer = ops.SyncBatchNorm(3)
    assert type(revert_sync_batchnorm(torch.nn.Sequential(layer))[0]) is not ops.SyncBatchNorm


@pytest.mark.parametrize(
    'versions, sentence',
    [
        ({}, None),
        ({'mmcv': '2.1.0'}, None),
        ({'mmcv-lite': '2.1.0'}, None),
        (
            {'mmcv': '2.1.0', 'mmcv-lite': '2.0.1'},
            'mmcv 2.1.0 and mmcv-lite 2.0.1 are installed in one environment and overwrite each other: '
            '`pip uninstall -y mmcv mmcv-lite`, then install one of them',
        ),
        (
            {'mmcv-lite': '2.1.0', 'onedl-mmcv': '2.3.6'},
            'mmcv-lite 2.1.0 and onedl-mmcv 2.3.6 are installed in one environment and overwrite each other: '
            '`pip uninstall -y mmcv-lite onedl-mmcv`, then install one of them',
        ),
    ],
)
def test_two_distributions_in_one_environment(monkeypatch, versions, sentence):
    def version(name: str) -> str:
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(importlib.metadata, 'version', version)
    assert mixed_distributions() == sentence


def test_operators_without_torchvision(extension, monkeypatch):
    """Those of torch run; those of torchvision say what is missing."""
    monkeypatch.setitem(sys.modules, 'torchvision', None)
    ious = torch.zeros(1)
    extension.bbox_overlaps(torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[0.0, 0, 1, 2]]), ious, 0, True, 0)
    assert ious.tolist() == [0.5]
    with pytest.raises(UserError) as caught:
        extension.nms(torch.zeros(1, 4), torch.zeros(1), 0.5, 0)
    assert str(caught.value) == (
        'RoIAlign, NMS and deformable convolution are those of torchvision where mmcv is not compiled, and torchvision '
        'is not installed: pip install torchvision'
    )
