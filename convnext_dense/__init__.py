"""ConvNeXt for dense prediction. Importing this package registers everything in mmengine's root registries."""
try:
    import mmengine  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != 'mmengine':
        raise
    raise ModuleNotFoundError(
        "convnext_dense needs mmengine, which comes in two distributions: install one of the extras, "
        "pip install 'convnext-dense[openmmlab]' or pip install 'convnext-dense[onedl]'", name='mmengine') from None

from .backbone import ARCHS, ConvNeXt
from .errors import UserError
from .layer_decay import ConvNeXtLayerDecayConstructor
from .load_hook import ConvNeXtLoadHook
from .version import __version__
from .weights import allow_mmengine_checkpoints

allow_mmengine_checkpoints()

__all__ = ['ARCHS', 'ConvNeXt', 'ConvNeXtLayerDecayConstructor', 'ConvNeXtLoadHook', 'UserError', '__version__']
