"""mmcv's operators made of ours, also where a compiled mmcv is installed."""

import importlib
import importlib.util
import pkgutil
from types import ModuleType

import pytest
import torch.distributed as dist

from convnext_dense.mmcv_ops.finder import EXTENSION, ExtensionFinder, install


@pytest.fixture(scope='session')
def extension() -> ModuleType:
    """The module that the finder provides, made without asking whether mmcv has one."""
    spec = ExtensionFinder().find_spec(EXTENSION)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def ops(extension, monkeypatch) -> ModuleType:
    """``mmcv.ops``, each file of which calls our operators during a test."""
    install()
    package = pytest.importorskip('mmcv.ops')
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f'mmcv.ops.{info.name}')
        if hasattr(module, 'ext_module'):
            monkeypatch.setattr(module, 'ext_module', extension)
    return package


@pytest.fixture
def one_process(tmp_path):
    """A process group of this process."""
    dist.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    yield
    dist.destroy_process_group()
