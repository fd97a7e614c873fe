"""ConvNeXt for dense prediction. Importing this package registers everything in mmengine's root registries.

Without torch or mmengine nothing is registered, and only what needs neither can be used: ``convnext_dense.runtime``,
the tables of archs, ``UserError`` and ``__version__``.
"""

import importlib
import importlib.util
from typing import Any

from convnext_dense.archs import ARCHS, ISOTROPIC_ARCHS
from convnext_dense.errors import UserError
from convnext_dense.version import __version__

_MISSING = [name for name in ('torch', 'mmengine') if importlib.util.find_spec(name) is None]

if not _MISSING:
    from convnext_dense.engine.cpu_amp import CPUAmpOptimWrapper
    from convnext_dense.engine.layer_decay import ConvNeXtLayerDecayConstructor
    from convnext_dense.engine.load_hook import ConvNeXtLoadHook
    from convnext_dense.engine.registration import register_all
    from convnext_dense.models.adapters import ConvNeXtSharedHead, PyramidAdapter
    from convnext_dense.models.block import prepare_for_inference
    from convnext_dense.models.convnext import ConvNeXt
    from convnext_dense.models.isotropic import ConvNeXtIsotropic
    from convnext_dense.models.roadmap import ConvNeXtRoadmap
    from convnext_dense.models.simple_feature_pyramid import SimpleFeaturePyramid
    from convnext_dense.run.train_test import test as evaluate
    from convnext_dense.run.train_test import train
    from convnext_dense.swap.swap import swap_backbone

    register_all()

# Imported when they are asked for, with what only they need.
_LAZY = {'Predictor': 'convnext_dense.run.predictor'}

__all__ = [
    'ARCHS',
    'CPUAmpOptimWrapper',
    'ConvNeXt',
    'ConvNeXtIsotropic',
    'ConvNeXtLayerDecayConstructor',
    'ConvNeXtLoadHook',
    'ConvNeXtRoadmap',
    'ConvNeXtSharedHead',
    'ISOTROPIC_ARCHS',
    'Predictor',
    'PyramidAdapter',
    'SimpleFeaturePyramid',
    'UserError',
    '__version__',
    'evaluate',
    'prepare_for_inference',
    'swap_backbone',
    'train',
]


def __getattr__(name: str) -> Any:
    """Import a lazy name, and say what is missing where a public name needs it."""
    if name in _LAZY and not _MISSING:
        return getattr(importlib.import_module(_LAZY[name]), name)
    if name in __all__ and _MISSING:
        raise ModuleNotFoundError(
            f'convnext_dense.{name} needs {" and ".join(_MISSING)}, which is not installed; mmengine comes in two '
            "distributions: install one of the extras, pip install 'convnext-dense[openmmlab]' or "
            "pip install 'convnext-dense[onedl]' (convnext-dense doctor says what else is missing)",
            name=_MISSING[0],
        )
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
