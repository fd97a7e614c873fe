"""ConvNeXt for dense prediction. Importing this package registers everything in mmengine's root registries."""

try:
    import mmengine  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != 'mmengine':
        raise
    raise ModuleNotFoundError(
        'convnext_dense needs mmengine, which comes in two distributions: install one of the extras, '
        "pip install 'convnext-dense[openmmlab]' or pip install 'convnext-dense[onedl]'",
        name='mmengine',
    ) from None

import importlib.metadata
import importlib.util

from mmengine.config.utils import MODULE2PACKAGE
from mmengine.registry import Registry, root

from .adapters import ConvNeXtSharedHead, PyramidAdapter
from .amp import CPUAmpOptimWrapper
from .backbone import ARCHS, ConvNeXt
from .errors import UserError
from .layer_decay import ConvNeXtLayerDecayConstructor
from .load_hook import ConvNeXtLoadHook
from .swap import swap_backbone
from .version import __version__
from .weights import allow_mmengine_checkpoints

allow_mmengine_checkpoints()

# What a config inherits from 'convnext_dense::...' is built in the scope convnext_dense, which has nothing of its own:
# the root registries answer there.
for _registry in [value for value in vars(root).values() if isinstance(value, Registry)]:
    Registry(_registry.name, parent=_registry, scope='convnext_dense')
# mmengine looks a package up by its distribution, which leads astray in an editable installation, and then by its
# module: the name of a module that is no distribution finds this folder in both.
MODULE2PACKAGE.setdefault('convnext_dense', 'convnext_dense.version')
# The OneDL distribution of mmseg has a name that mmengine does not know.
if importlib.util.find_spec('mmseg'):
    try:
        importlib.metadata.version(MODULE2PACKAGE['mmseg'])
    except importlib.metadata.PackageNotFoundError:
        MODULE2PACKAGE['mmseg'] = 'mmseg'  # by module as well

__all__ = [
    'ARCHS',
    'CPUAmpOptimWrapper',
    'ConvNeXt',
    'ConvNeXtLayerDecayConstructor',
    'ConvNeXtLoadHook',
    'ConvNeXtSharedHead',
    'PyramidAdapter',
    'UserError',
    '__version__',
    'swap_backbone',
]
