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

from convnext_dense.archs import ARCHS
from convnext_dense.engine.cpu_amp import CPUAmpOptimWrapper
from convnext_dense.engine.layer_decay import ConvNeXtLayerDecayConstructor
from convnext_dense.engine.load_hook import ConvNeXtLoadHook
from convnext_dense.engine.registration import register_all
from convnext_dense.errors import UserError
from convnext_dense.models.adapters import ConvNeXtSharedHead, PyramidAdapter
from convnext_dense.models.block import prepare_for_inference
from convnext_dense.models.convnext import ConvNeXt
from convnext_dense.swap.swap import swap_backbone
from convnext_dense.version import __version__

register_all()

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
    'prepare_for_inference',
    'swap_backbone',
]
