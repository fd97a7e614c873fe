"""Every check of the doctor is made to fail, by real faults where the machine permits them."""

from __future__ import annotations

import collections
import copy
import http.server
import importlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import packaging.requirements  # noqa: F401 before a test takes the path away
import pytest
import torch
from helpers import ROOT
from mmengine.config import Config
from mmengine.model import BaseModel
from torch import nn

from convnext_dense import ConvNeXt
from convnext_dense.errors import DiagnosableError, UserError
from convnext_dense.models.block import Block
from convnext_dense.run.doctor import doctor, machine, packages, training
from convnext_dense.run.doctor.diagnosis import Diagnosis, problem_of, run_check
from convnext_dense.run.doctor.estimate import Sizes, image_size, measure, number_of_checkpoints
from convnext_dense.run.options import errors_as_sentences

pytest.importorskip('mmdet')
CHECKS = (*doctor.CHECKS, *training.CHECKS)
# Without these a training runs all the same.
NEVER_PROBLEMS = {machine.shared_memory, machine.home_and_caches, training.earlier_run}
NOWHERE = '/proc/nowhere'  # cannot be made, by root either
MASK_RCNN = str(ROOT / 'configs/mask_rcnn/convnext_digits.py')
FROM_SCRATCH = 'model.backbone.init_cfg=None'
GIGABYTE = 2**30

Case = tuple[Callable, str, Callable, str, str, str]
CASES: list[Case] = []


def case(check: Callable, level: str, what: str, fix: str) -> Callable:
    """Register a function that brings a fault about and returns the arguments of ``check``.

    Args:
        level, what, fix: Of one of the diagnoses that the check has to yield; parts of the texts.
    """

    def register(prepare: Callable) -> Callable:
        CASES.append((check, prepare.__name__, prepare, level, what, fix))
        return prepare

    return register


class Fault:
    """What a case needs: the fixtures, and a folder of installed packages that are made up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.monkeypatch, self.folder = monkeypatch, folder
        self.forgotten: dict[str, ModuleType] = {}

    def install(
        self, versions: dict[str, str], requires: dict[str, list[str]] | None = None, site: str = 'site'
    ) -> Path:
        """Make a folder the only one on the path, with the metadata of these distributions."""
        path = self.folder / site
        for name, version in versions.items():
            lines = [f'Name: {name}', f'Version: {version}']
            lines += [f'Requires-Dist: {text}' for text in (requires or {}).get(name, [])]
            info = path / f'{name.replace("-", "_")}-{version}.dist-info'
            info.mkdir(parents=True)
            (info / 'METADATA').write_text('Metadata-Version: 2.1\n' + '\n'.join(lines) + '\n')
        path.mkdir(exist_ok=True)
        self.monkeypatch.setattr(sys, 'path', [str(path)])
        return path

    def module(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def disk_with(self, free: int) -> None:
        usage = SimpleNamespace(total=100 * GIGABYTE, used=0, free=free)
        self.monkeypatch.setattr(machine.shutil, 'disk_usage', lambda folder: usage)

    def gpu(
        self, capability: str = '90', free: int = 70 * GIGABYTE, built: tuple[str, ...] = ('sm_80', 'sm_90')
    ) -> None:
        """Let torch know a GPU."""
        properties = SimpleNamespace(name='Test GPU', major=int(capability[:-1]), minor=int(capability[-1]))
        for name, value in dict(
            is_available=True, device_count=1, get_device_properties=properties, get_arch_list=list(built),
            mem_get_info=(free, 80 * GIGABYTE),
        ).items():  # fmt: skip
            self.monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)

    def training(self, *options: str, config: str = MASK_RCNN) -> tuple[training.Training]:
        """Return a training whose needed checks before that of the case have passed."""
        return (training.Training(config, options, str(self.folder / 'work'), data_check=True),)

    def forget(self, *names: str) -> None:
        """Let packages be imported anew until the end of the test."""
        self.forgotten = {name: module for name, module in sys.modules.items() if name.split('.')[0] in names}
        for name in self.forgotten:
            del sys.modules[name]
        importlib.invalidate_caches()

    def restore(self) -> None:
        packages = {name.split('.')[0] for name in self.forgotten}
        for name in [name for name in sys.modules if name.split('.')[0] in packages]:
            del sys.modules[name]
        sys.modules.update(self.forgotten)


@pytest.fixture
def fault(monkeypatch, tmp_path) -> Iterator[Fault]:
    made = Fault(monkeypatch, tmp_path)
    yield made
    made.restore()


GOOD = {
    'torch': '2.13.0', 'torchvision': '0.28.0', 'mmengine': '0.10.7', 'mmcv-lite': '2.1.0', 'setuptools': '79.0.1',
    'mmdet': '3.3.0', 'mmsegmentation': '1.2.2', 'ftfy': '6.3', 'regex': '2026.1', 'scikit-learn': '1.8',
}  # fmt: skip


@case(packages.package, 'problem', 'convnext_dense cannot be imported (OSError: libcuda.so', 'pip install --force')
def another_library(fault):
    fault.monkeypatch.setattr(packages, 'import_error', lambda: OSError('libcuda.so: cannot open'))
    return ()


@case(packages.package, 'problem', 'setuptools is too new for this toolkit', "pip install 'setuptools<80'")
def a_known_mixture(fault):
    missing = ModuleNotFoundError("No module named 'pkg_resources'")
    fault.monkeypatch.setattr(packages, 'import_error', lambda: missing)
    return ()


@case(
    packages.toolkit_set,
    'problem',
    'neither the toolkits of OpenMMLab nor those of OneDL',
    "'convnext-dense[openmmlab]'",
)
def no_toolkit(fault):
    fault.install({'torch': '2.13.0'})
    return ()


@case(
    packages.toolkit_set,
    'problem',
    'mmdet 3.3.0) and of OneDL (onedl-mmengine 0.10.12)',
    'pip uninstall -y onedl-mmengine',
)
def both_sets(fault):
    fault.install({'mmdet': '3.3.0', 'onedl-mmengine': '0.10.12'})
    return ()


@case(packages.requirements, 'problem', 'torch is not installed', "pip install 'torch>=2.6'")
def an_empty_environment(fault):
    fault.install({})
    return ()


@case(
    packages.requirements, 'problem', 'mmcv 2.2.0 is installed, wanted is mmcv-lite>=2.1,<2.2', "'mmcv-lite>=2.1,<2.2'"
)
def a_compiled_mmcv_that_is_too_new(fault):
    fault.install({**{name: GOOD[name] for name in GOOD if name != 'mmcv-lite'}, 'mmcv': '2.2.0'})
    return ()


@case(packages.requirements, 'note', 'the requirements of convnext_dense are not known', 'pip install')
def a_folder_that_was_copied(fault):
    fault.monkeypatch.setattr(packages, 'PACKAGE', fault.folder / 'convnext_dense')
    fault.install(GOOD)
    return ()


@case(
    packages.pairs,
    'problem',
    'torchvision 0.28.0 wants torch (==2.13.0), found torch 2.12.1',
    "pip install 'torch==2.13.0'",
)
def torchvision_of_another_torch(fault):
    fault.install({**GOOD, 'torch': '2.12.1'}, {'torchvision': ['numpy', 'torch (==2.13.0)']})
    return ()


@case(packages.pairs, 'problem', 'found mmcv-lite 2.2.0', "pip install 'mmcv-lite<2.2.0,>=2.0.0rc4'")
def mmcv_that_mmdet_refuses(fault):
    fault.install({**GOOD, 'mmcv-lite': '2.2.0'}, {'mmdet': ["mmcv <2.2.0,>=2.0.0rc4 ; extra == 'mim'"]})
    return ()


@case(
    packages.operators,
    'problem',
    'mmcv 2.1.0 and mmcv-lite 2.1.0 are installed in one environment',
    'pip uninstall -y mmcv mmcv-lite',
)
def two_distributions_of_mmcv(fault):
    fault.install({'mmcv': '2.1.0', 'mmcv-lite': '2.1.0'})
    return ()


@case(
    packages.operators,
    'problem',
    'the compiled operators of mmcv do not go with this torch (ImportError: undefined symbol',
    'pip uninstall -y mmcv',
)
def operators_of_another_torch(fault):
    site = fault.install({'mmcv': '2.1.0'})
    fault.module(site / 'mmcv/__init__.py', '')
    fault.module(site / 'mmcv/_ext.py', 'raise ImportError("undefined symbol: _ZN3c10")')
    fault.forget('mmcv')
    return ()


@case(
    packages.operators, 'problem', 'torch and torchvision do not belong together', 'install the pair of constraints.txt'
)
def a_torchvision_that_fails(fault):
    site = fault.install({'mmcv-lite': '2.1.0', 'torchvision': '0.28.0'})
    fault.module(site / 'mmcv/__init__.py', '')
    fault.module(site / 'torchvision/__init__.py', 'raise RuntimeError("operator torchvision::nms does not exist")')
    fault.forget('mmcv', 'torchvision')
    return ()


@case(packages.duplicates, 'note', 'convnext_dense lies in', 'PYTHONPATH')
def a_second_package_of_ours(fault):
    site = fault.install({})
    fault.module(site / 'convnext_dense/__init__.py', '')
    return ()


@case(
    packages.duplicates,
    'problem',
    'belongs to mmsegmentation and onedl-mmsegmentation',
    'pip uninstall -y mmsegmentation',
)
def one_folder_of_two_distributions(fault):
    site = fault.install({'mmsegmentation': '1.2.2', 'onedl-mmsegmentation': '1.4.2'})
    for info in site.glob('*.dist-info'):
        (info / 'top_level.txt').write_text('mmseg\n')
    fault.module(site / 'mmseg/__init__.py', '')
    return ()


@case(packages.duplicates, 'note', 'belongs to no installed distribution', 'pip install -e')
def a_clone_on_the_path(fault):
    site = fault.install({})
    fault.module(site / 'mmdet/__init__.py', '')
    return ()


def no_gpu(fault: Fault, driver: bool, cuda: str | None) -> tuple[()]:
    fault.monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    fault.monkeypatch.setattr(torch.version, 'cuda', cuda)
    fault.monkeypatch.setattr(machine, 'NVIDIA', Path(__file__) if driver else Path(NOWHERE))
    return ()


@case(machine.gpu, 'note', 'there is no GPU', 'nothing, for small models')
def a_machine_without_gpu(fault):
    return no_gpu(fault, driver=False, cuda=None)


@case(machine.gpu, 'note', 'is built for CPUs', 'install the CUDA build')
def torch_for_cpus(fault):
    return no_gpu(fault, driver=True, cuda=None)


@case(machine.gpu, 'note', '(CUDA 13.0) cannot use the GPU', 'nvidia-smi: its CUDA version has to be 13.0 or newer')
def a_driver_that_is_too_old(fault):
    return no_gpu(fault, driver=True, cuda='13.0')


@case(machine.gpu, 'problem', 'Test GPU, is sm_61, and torch', 'install a build of torch for it')
def a_gpu_that_is_too_old(fault):
    fault.gpu('61')
    return ()


@case(machine.gpu, 'note', 'has 5.0 GiB of 80.0 GiB free', 'CUDA_VISIBLE_DEVICES')
def a_gpu_in_use(fault):
    fault.gpu(free=5 * GIGABYTE)
    return ()


@case(machine.memory, 'problem', '1.0 GiB of memory are available', 'docker run --memory')
def a_small_machine(fault):
    (fault.folder / 'meminfo').write_text('MemTotal: 9999999 kB\nMemAvailable:    1048576 kB\n')
    fault.monkeypatch.setattr(machine, 'MEMINFO', fault.folder / 'meminfo')
    fault.monkeypatch.setattr(machine, 'CGROUPS', ())
    return ()


@case(machine.memory, 'problem', '512 MiB of memory are available', 'docker run --memory')
def a_small_container(fault):
    (fault.folder / 'limit').write_text(f'{GIGABYTE}\n')
    (fault.folder / 'use').write_text(f'{GIGABYTE // 2}\n')
    fault.monkeypatch.setattr(machine, 'CGROUPS', ((fault.folder / 'limit', fault.folder / 'use'),))
    return ()


@case(machine.memory, 'note', 'is not known', 'look at it')
def a_system_that_does_not_say(fault):
    fault.monkeypatch.setattr(machine, 'MEMINFO', Path(NOWHERE))
    fault.monkeypatch.setattr(machine, 'CGROUPS', ())
    return ()


@case(machine.shared_memory, 'note', '64 MiB free', 'docker run --shm-size=8g')
def a_container_of_docker(fault):
    fault.disk_with(64 * 2**20)
    return ()


@case(machine.work_folder, 'problem', f'{NOWHERE}/work cannot be written to', '--work-dir')
def a_folder_that_cannot_be_made(fault):
    return (Path(NOWHERE) / 'work',)


@case(machine.work_folder, 'problem', 'is a file)', '--work-dir')
def a_file_in_its_place(fault):
    (fault.folder / 'work').write_text('')
    return (fault.folder / 'work',)


@case(machine.work_folder, 'problem', 'has 3 MiB free', 'make room')
def a_full_disk(fault):
    fault.disk_with(3 * 2**20)
    return (fault.folder / 'work',)


@case(machine.home_and_caches, 'note', 'your home', 'export HOME=FOLDER')
def a_home_that_cannot_be_written_to(fault):
    fault.monkeypatch.setenv('HOME', NOWHERE)
    return ()


@case(machine.temporary_folder, 'problem', 'there is no folder for temporary files', 'export TMPDIR')
def no_temporary_folder(fault):
    fault.monkeypatch.setattr(tempfile, 'tempdir', None)
    fault.monkeypatch.setattr(tempfile, '_candidate_tempdir_list', lambda: [NOWHERE])
    return ()


@case(machine.temporary_folder, 'problem', 'has 3 MiB free', 'export TMPDIR')
def a_full_temporary_folder(fault):
    fault.disk_with(3 * 2**20)
    return ()


@case(machine.variables, 'problem', 'CONVNEXT_DENSE_WEIGHTS=gone is no folder', 'unset CONVNEXT_DENSE_WEIGHTS')
def a_folder_of_weights_that_is_gone(fault):
    fault.monkeypatch.setenv('CONVNEXT_DENSE_WEIGHTS', 'gone')
    return ()


@case(machine.variables, 'problem', 'CONVNEXT_DENSE_DATA=gone is no folder', 'unset CONVNEXT_DENSE_DATA')
def a_folder_of_data_that_is_gone(fault):
    fault.monkeypatch.setenv('CONVNEXT_DENSE_DATA', 'gone')
    return ()


@case(training.config, 'problem', 'there is no config file gone.py', 'check the path')
def no_config(fault):
    return fault.training(config='gone.py')


@case(training.config, 'problem', 'SyntaxError', 'correct what this names')
def a_config_that_is_no_python(fault):
    (fault.folder / 'bad.py').write_text('model = dict(')
    return fault.training(config=str(fault.folder / 'bad.py'))


@case(training.config, 'problem', 'has no train_dataloader, train_cfg, optim_wrapper', 'new-config')
def a_config_of_a_model_alone(fault):
    (fault.folder / 'model.py').write_text("model = dict(type='ConvNeXt')")
    return fault.training(config=str(fault.folder / 'model.py'))


@case(training.work_folder, 'problem', 'is a file)', '--work-dir')
def a_file_in_place_of_the_work_folder(fault):
    (fault.folder / 'work').write_text('')
    return fault.training()


@case(training.earlier_run, 'note', 'epoch_3.pth the last', '--resume')
def a_work_folder_with_checkpoints(fault):
    (fault.folder / 'work').mkdir()
    (fault.folder / 'work/epoch_3.pth').write_text('')
    return fault.training()


@case(training.toolkit, 'problem', "No module named 'no_such_toolkit'", 'pip install no_such_toolkit')
def a_toolkit_that_is_not_installed(fault):
    return fault.training('default_scope=no_such_toolkit')


@case(training.toolkit, 'note', 'mixed precision in float16', 'train on a GPU')
def mixed_precision_on_a_cpu(fault):
    fault.monkeypatch.setattr('convnext_dense.run.machine.get_device', lambda: 'cpu')
    return fault.training('optim_wrapper.type=AmpOptimWrapper')


@case(
    training.settings,
    'problem',
    'model.roi_head.bbox_head.num_classes: 7, but',
    'set model.roi_head.bbox_head.num_classes=10',
)
def a_head_of_other_classes(fault):
    return fault.training('model.roi_head.bbox_head.num_classes=7')


@case(training.data, 'problem', 'instances_train2017.json do not exist', 'set CONVNEXT_DENSE_DATA=FOLDER')
def data_that_are_not_there(fault):
    return fault.training('data_root=gone')


@case(training.data, 'problem', 'instances_train2017.json', 'write the file again')
def annotations_that_cannot_be_read(fault):
    annotations = fault.folder / 'coco/annotations'
    annotations.mkdir(parents=True)
    for split in ('train', 'val'):
        (fault.folder / f'coco/{split}2017').mkdir()
        (annotations / f'instances_{split}2017.json').write_text('{"images": [')
    return fault.training(f'data_root={fault.folder}/coco/')


def weights_of(fault: Fault, source: str) -> tuple[training.Training]:
    config = fault.folder / 'weights.py'
    config.write_text(
        f'_base_ = [{MASK_RCNN!r}]\n'
        f"model = dict(backbone=dict(init_cfg=dict(type='Pretrained', checkpoint={source!r})))"
    )
    return fault.training(config=str(config))


@case(training.weights, 'problem', 'there is no file gone.pth', 'check the path')
def a_file_of_weights_that_is_gone(fault):
    return weights_of(fault, 'gone.pth')


@case(training.weights, 'problem', 'is a web page, not weights', 'get the file again')
def a_web_page_as_weights(fault):
    (fault.folder / 'weights.pth').write_text('<!DOCTYPE html>')
    return weights_of(fault, str(fault.folder / 'weights.pth'))


@case(
    training.weights,
    'problem',
    'http://127.0.0.1:9/weights.pth is not on this machine, and its server does not give it',
    'export CONVNEXT_DENSE_WEIGHTS=FOLDER',
)
def a_server_that_does_not_answer(fault):
    return weights_of(fault, 'http://127.0.0.1:9/weights.pth')


@case(training.weights, 'note', 'torchvision://resnet50 is loaded by mmengine', 'nothing')
def weights_of_mmengine(fault):
    return weights_of(fault, 'torchvision://resnet50')


@case(training.weights, 'note', 'the config names no pretrained weights', 'model.backbone.init_cfg=')
def a_training_from_scratch(fault):
    return fault.training(FROM_SCRATCH)


@case(training.model, 'problem', 'arch', '')
def an_arch_that_does_not_exist(fault):
    return fault.training('model.backbone.arch=gigantic')


@case(training.model, 'problem', 'NoSuchHead', 'correct that part of the model')
def a_part_that_does_not_exist(fault):
    return fault.training('model.rpn_head.type=NoSuchHead')


@case(training.optimizer, 'problem', 'NoSuchOptimizer', 'correct optim_wrapper')
def an_optimizer_that_does_not_exist(fault):
    return fault.training('optim_wrapper.optimizer.type=NoSuchOptimizer')


@case(training.optimizer, 'problem', 'no_such_key', '')
def an_option_of_layer_decay_that_does_not_exist(fault):
    return fault.training('optim_wrapper.paramwise_cfg.no_such_key=1')


def memory_of(fault: Fault, available: int) -> tuple[training.Training]:
    fault.monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    fault.monkeypatch.setattr(machine, 'available_memory', lambda: available)
    return fault.training()


@case(training.training_memory, 'problem', 'this machine has 10 MiB', 'train a smaller arch')
def memory_for_not_even_the_weights(fault):
    return memory_of(fault, 10 * 2**20)


@case(
    training.training_memory, 'note', 'for the backward pass of 16 images of 96x96', 'model.backbone.memory=checkpoint'
)
def memory_for_the_weights_alone(fault):
    return memory_of(fault, 150 * 2**20)


@case(training.disk, 'problem', '3 checkpoints of', 'default_hooks.checkpoint.max_keep_ckpts=2')
def a_disk_for_two_checkpoints(fault):
    fault.disk_with(100 * 2**20)
    return fault.training()


def prepared(check: Callable, subject: tuple) -> tuple:
    """Run the checks that this one needs the results of."""
    if subject and isinstance(subject[0], training.Training):
        needed_ones = [*training.NEEDED, *([training.settings] if check is training.data else [])]
        for needed in sorted(needed_ones, key=training.CHECKS.index):
            if training.CHECKS.index(needed) < training.CHECKS.index(check):
                list(run_check(needed, *subject))
    return subject


@pytest.mark.parametrize('entry', CASES, ids=[f'{check.__name__}-{name}' for check, name, *_ in CASES])
def test_check_fails(entry, fault):
    check, _, prepare, level, what, fix = entry
    found = list(run_check(check, *prepared(check, prepare(fault))))
    fitting = [each for each in found if each.level == level and what in each.what and fix in each.fix]
    assert fitting, found
    for each in found:
        assert each.check == check.__name__
        assert bool(each.why) == bool(each.fix) == (each.level != 'ok'), each


def test_every_check_is_made_to_fail():
    levels = collections.defaultdict(set)
    for check, _, _, level, _, _ in CASES:
        levels[check].add(level)
    assert set(levels) == set(CHECKS)
    assert {check for check in CHECKS if 'problem' not in levels[check]} == NEVER_PROBLEMS


# What is said of a requirement that is not installed, by its name; a training cannot start without the others.
LEFT_OUT = dict.fromkeys(('torchvision', 'ftfy', 'regex', 'scikit-learn', 'mmdet', 'mmsegmentation'), 'note')


@pytest.mark.parametrize('name', GOOD)
def test_every_requirement_is_missed(fault, name):
    fault.install({other: version for other, version in GOOD.items() if other != name})
    wanted = [each for each in run_check(packages.requirements) if f'{name} is not installed' == each.what]
    assert [each.level for each in wanted] == [LEFT_OUT.get(name, 'problem')]
    assert wanted[0].fix.startswith(f"pip install '{name}")


def test_a_training_needs_one_of_the_toolkits(fault):
    fault.install({name: version for name, version in GOOD.items() if name not in ('mmdet', 'mmsegmentation')})
    missing = {each.what: each.level for each in run_check(packages.requirements) if each.level != 'ok'}
    assert missing == {'mmdet is not installed': 'problem', 'mmsegmentation is not installed': 'problem'}


@pytest.mark.parametrize(
    'name, version',
    [('torch', '2.0.1'), ('mmengine', '0.10.6'), ('mmengine', '1.0'), ('mmcv-lite', '2.2.0'), ('setuptools', '80.1'),
     ('mmdet', '3.2.0'), ('mmsegmentation', '1.2.1')],
)  # fmt: skip
def test_every_version_is_compared(fault, name, version):
    fault.install({**GOOD, name: version})
    problems = [each for each in run_check(packages.requirements) if each.level == 'problem']
    assert len(problems) == 1 and problems[0].what.startswith(f'{name} {version} is installed, wanted is {name}')


def test_requirements_of_an_installed_package(fault):
    fault.monkeypatch.setattr(packages, 'PACKAGE', fault.folder / 'convnext_dense')
    requires = ['torch>=2.1; extra == "onedl"', 'onedl-mmcv>=2.3.6; extra == "onedl"', 'numpy; extra == "runtime"']
    fault.install({'convnext-dense': '0.1.0', 'torch': '2.13.0', 'onedl-mmcv': '2.3.5'}, {'convnext-dense': requires})
    problem, good = run_check(packages.requirements)
    assert problem.what == 'onedl-mmcv 2.3.5 is installed, wanted is onedl-mmcv>=2.3.6'
    assert (good.level, good.what) == ('ok', 'torch 2.13.0')


def test_good_packages(fault):
    fault.install({**GOOD, 'torch': '2.13.0+cpu'}, {'torchvision': ['torch (==2.13.0)']})
    for check in (packages.toolkit_set, packages.requirements, packages.pairs):
        assert {each.level for each in run_check(check)} == {'ok'}, check


@pytest.mark.parametrize('name', ['HOME', 'TORCH_HOME', 'HF_HOME', 'MPLCONFIGDIR', 'XDG_CACHE_HOME'])
def test_every_cache_is_looked_at(fault, name):
    for other in ('TORCH_HOME', 'HF_HOME', 'MPLCONFIGDIR', 'XDG_CACHE_HOME'):
        fault.monkeypatch.delenv(other, raising=False)
    fault.monkeypatch.setenv('HOME', str(fault.folder))
    assert [each.level for each in run_check(machine.home_and_caches)] == ['ok']
    fault.monkeypatch.setenv(name, NOWHERE)
    fixes = [each.fix for each in run_check(machine.home_and_caches) if each.level == 'note']
    assert f'export {name}=FOLDER, with a folder that can be written to' in fixes


def test_a_check_leaves_nothing_behind(fault):
    list(run_check(machine.work_folder, fault.folder / 'a/b'))
    assert list(fault.folder.iterdir()) == []


@pytest.mark.parametrize(
    'sentence, what, fix',
    [
        ('there is no file a.pth: check the path (working folder: /x)', 'there is no file a.pth',
         'check the path (working folder: /x)'),
        ('--track x: there is no such tracker: use `a: b`', '--track x: there is no such tracker', 'use `a: b`'),
        ('nothing to be done', 'nothing to be done', 'change what this sentence names'),
    ],
)  # fmt: skip
def test_sentences_are_taken_apart(sentence, what, fix):
    assert problem_of(UserError(sentence), 'why') == Diagnosis('problem', what, 'why', fix)


@pytest.mark.parametrize('status', [200, 404])
def test_servers_are_asked_for_the_file(status):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(status)
            self.end_headers()

        def log_message(self, *args):
            pass

    with http.server.HTTPServer(('127.0.0.1', 0), Handler) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        reason = training.why_not_reachable(f'http://127.0.0.1:{server.server_port}/weights.pth')
    assert reason == ('' if status == 200 else 'HTTP Error 404: Not Found')


class TwoLayers(BaseModel):
    """Saves its input (N, 3, 10, 12), and its hidden layer (N, 4, 10, 12)."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1, bias=False)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return self.second(self.first(inputs))


SCALE = dict(type='RandomChoiceResize', scales=[(6, 5), (12, 10)])
SMALL = Config(
    dict(
        model=dict(),
        train_dataloader=dict(batch_size=2, dataset=dict(pipeline=[SCALE])),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.1)),
        train_cfg=dict(max_epochs=12),
    )
)
NUM_PARAMS = (3 * 4 + 4) + 4 * 5


def sizes_of(**changes) -> Sizes:
    cfg = copy.deepcopy(SMALL)
    cfg.merge_from_dict(changes)
    with torch.device('meta'):
        model = TwoLayers()
    return measure(model, cfg, on_cpu=True)


def test_sizes():
    sizes = sizes_of()
    assert (sizes.weights, sizes.gradients, sizes.averaged) == (4 * NUM_PARAMS, 4 * NUM_PARAMS, 0)
    assert sizes.optimizer == 2 * 4 * NUM_PARAMS + 3 * 4  # two moments, and the step of each of three parameters
    assert sizes.activations == 4 * 2 * 10 * 12 * (3 + 4)


@pytest.mark.parametrize(
    'optimizer, copies', [(dict(type='SGD', lr=1), 0), (dict(type='SGD', lr=1, momentum=0.9), 1)], ids=str
)
def test_state_of_other_optimizers(optimizer, copies):
    assert sizes_of(optim_wrapper=dict(_delete_=True, optimizer=optimizer)).optimizer == copies * 4 * NUM_PARAMS


def test_an_average_is_a_second_model():
    sizes = sizes_of(custom_hooks=[dict(type='EMAHook')])
    assert sizes.averaged == sizes.weights and sizes.checkpoint == 2 * sizes.weights + sizes.optimizer


class Backbone(BaseModel):
    """Two blocks of 8 channels, after a stem that saves the input (2, 3, 10, 12) alone."""

    def __init__(self, memory):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        block = dict(drop_path=0.0, layer_scale_init_value=1.0, use_grn=False, eps=1e-6, kernel_size=7, memory=memory)
        self.blocks = nn.Sequential(Block(8, **block), Block(8, **block))

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return self.blocks(self.stem(inputs))


@pytest.mark.parametrize('memory, values', [(None, 6), ('default', 6), ('lean', 2), ('checkpoint', 1)])
def test_activations_are_those_that_a_fused_block_saves(memory, values):
    """Measured on the CPU: what the blocks save there, whatever the estimate says."""
    with torch.device('meta'):
        model = Backbone(memory)
    estimated = measure(model, SMALL, on_cpu=True).activations
    saved = {}

    def keep(tensor):
        saved[tensor.untyped_storage()._cdata] = tensor  # kept, so that no other takes its place
        return tensor

    real = Backbone(memory)
    params = {param.untyped_storage()._cdata for param in real.parameters()}
    block = real.blocks[0]
    x = torch.randn(2, 8, 10, 12).contiguous(memory_format=torch.channels_last)
    out = block(x)
    assert type(out.grad_fn).__name__.startswith('FusedBranch')
    for tensor in out.grad_fn.saved_tensors:
        if tensor is not None:
            keep(tensor)
    measured = sum(each.untyped_storage().nbytes() for key, each in saved.items() if key not in params)
    assert estimated == len(real.blocks) * values * 4 * x.numel() + 4 * 2 * 3 * 10 * 12
    assert 0.8 < measured / (values * 4 * x.numel()) < 1.3, measured


def test_a_checkpoint_is_as_large_as_said(tmp_path):
    """Of a ConvNeXt after a step of AdamW, as a file."""
    with torch.device('meta'):
        estimated = measure(ConvNeXt('atto'), SMALL, on_cpu=True).checkpoint
    model = ConvNeXt('atto')
    optimizer = torch.optim.AdamW(model.parameters())
    for param in model.parameters():
        param.grad = torch.zeros_like(param)
    optimizer.step()
    torch.save(dict(state_dict=model.state_dict(), optimizer=optimizer.state_dict()), tmp_path / 'file.pth')
    assert 0.97 < estimated / (tmp_path / 'file.pth').stat().st_size <= 1


@pytest.mark.parametrize(
    'recipe, size',
    [
        ('mask_rcnn/convnext_digits.py', (96, 96)),
        ('mask_rcnn/convnext_t_3x_coco.py', (800, 1333)),
        ('upernet/convnext_t_512_160k_ade20k.py', (512, 512)),
        ('upernet/convnext_b_in22k_640_160k_ade20k.py', (640, 640)),
    ],
)
def test_size_of_images(recipe, size):
    assert image_size(Config.fromfile(ROOT / 'configs' / recipe)) == size


@pytest.mark.parametrize(
    'hook, number',
    [
        (dict(), (1, 0)),  # the last one
        (dict(interval=1), (12, 0)),
        (dict(interval=5), (3, 0)),
        (dict(interval=1, max_keep_ckpts=2), (3, 0)),  # the third is written before the first is deleted
        (dict(interval=1, max_keep_ckpts=2, save_best='auto'), (3, 1)),
        (dict(interval=1, save_best=['coco/bbox_mAP', 'coco/segm_mAP']), (12, 2)),
        (dict(interval=2_000, by_epoch=False), (1, 0)),
    ],
    ids=str,
)
def test_number_of_checkpoints(hook, number):
    cfg = copy.deepcopy(SMALL)
    cfg.default_hooks = dict(checkpoint=dict(type='CheckpointHook', **hook))
    assert number_of_checkpoints(cfg) == number


@pytest.fixture
def memory(monkeypatch):
    """Enough of it, whatever else this machine is doing."""
    monkeypatch.setattr(machine, 'available_memory', lambda: 8 * GIGABYTE)


def test_a_good_training(digits, memory, monkeypatch, tmp_path):
    monkeypatch.setenv('CONVNEXT_DENSE_DATA', str(digits))
    found = list(doctor.diagnose(MASK_RCNN, [FROM_SCRATCH], str(tmp_path / 'work')))
    assert [each for each in found if each.level == 'problem'] == []
    well = {each.check for each in found if each.level == 'ok'}
    assert {'settings', 'data', 'model', 'optimizer', 'training_memory', 'disk'} <= well
    assert not (tmp_path / 'work').exists()


def test_the_tool(tool, memory, tmp_path):
    status, text = tool('doctor', '--json', '--work-dir', tmp_path, data=tmp_path)
    report = json.loads(text)
    assert status == 0 and report['counts']['problem'] == 0
    assert {each['check'] for each in report['findings']} >= {check.__name__ for check in packages.CHECKS}
    assert set(report['findings'][0]) == {'check', 'level', 'what', 'why', 'fix'}
    status, text = tool('doctor', 'gone.py', '--work-dir', tmp_path, data=tmp_path)
    lines = text.splitlines()
    assert status == 1 and 'problem  config: there is no config file gone.py' in lines
    assert lines[-1].startswith('1 problems, ')


@pytest.mark.parametrize('package', ['torch', 'mmengine'])
def test_a_package_that_cannot_be_imported(package, tmp_path):
    """The doctor answers where no other tool can start."""
    (tmp_path / package).mkdir()
    (tmp_path / package / '__init__.py').write_text(
        'raise ImportError("libmissing.so: cannot open shared object file")'
    )
    env = dict(os.environ, PYTHONPATH=f'{tmp_path}:{ROOT}')
    command = [sys.executable, str(ROOT / 'tools/convnext-dense'), 'doctor', MASK_RCNN, '--json']
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 1, done.stderr
    found = {each['check']: each for each in json.loads(done.stdout)['findings'] if each['level'] == 'problem'}
    assert 'libmissing.so' in found['package']['what']
    assert found['config']['what'].startswith(f'{MASK_RCNN} was not checked')


def test_the_tools_name_the_doctor():
    with pytest.raises(SystemExit) as stop, errors_as_sentences():
        raise DiagnosableError('no network: get the file')
    assert stop.value.code == (
        'error: no network: get the file; `convnext-dense doctor CONFIG` checks this and what else a training needs'
    )
