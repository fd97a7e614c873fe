"""Everything that ``import convnext_dense`` changes outside this package.

Each function below changes one thing and may be called again.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util

from mmengine.config.utils import MODULE2PACKAGE
from mmengine.fileio import register_backend
from mmengine.registry import (
    DATA_SAMPLERS,
    DATASETS,
    HOOKS,
    LOOPS,
    MODELS,
    OPTIM_WRAPPER_CONSTRUCTORS,
    OPTIM_WRAPPERS,
    STRATEGIES,
    Registry,
    root,
)
from mmengine.runner import CheckpointLoader

from convnext_dense import mmcv_ops
from convnext_dense.engine.checkpoints import BACKEND, DurableBackend, DurableCheckpointHook
from convnext_dense.engine.cpu_amp import CPUAmpOptimWrapper
from convnext_dense.engine.finite import FiniteModelHook, FiniteStepsHook
from convnext_dense.engine.fsdp import ConvNeXtFSDPStrategy
from convnext_dense.engine.inference_hook import PrepareForInferenceHook
from convnext_dense.engine.layer_decay import ConvNeXtLayerDecayConstructor
from convnext_dense.engine.load_hook import ConvNeXtLoadHook
from convnext_dense.engine.loops import ResumableEpochLoop, ResumableIterLoop
from convnext_dense.engine.random_state import RandomStateHook, SeededBatchSampler, SeededDataset
from convnext_dense.engine.scope import SCOPE, ScopeOfConfigs
from convnext_dense.models.adapters import ConvNeXtSharedHead, FeatureBatchNorm, PyramidAdapter
from convnext_dense.models.convnext import ConvNeXt
from convnext_dense.models.isotropic import ConvNeXtIsotropic
from convnext_dense.models.roadmap import ConvNeXtRoadmap
from convnext_dense.models.simple_feature_pyramid import SimpleFeaturePyramid
from convnext_dense.weights.safe_reading import allow_mmengine_checkpoints
from convnext_dense.weights.sources import SCHEME, SHORT_NAME, load_from_convnext_dense


def register_all() -> None:
    """Make this package known to mmengine, and mmcv's operators available."""
    provide_mmcv_operators()
    register_classes()
    register_scope()
    register_weight_sources()
    register_package_for_bases()
    register_onedl_mmseg()
    allow_mmengine_checkpoints()


def provide_mmcv_operators() -> None:
    """Let Python find ``mmcv._ext`` in this package, behind a compiled one, if somebody asks for it."""
    mmcv_ops.install()


def register_classes() -> None:
    """Add our classes to mmengine's root registries, where every scope finds them.

    Raises:
        KeyError: Another package has registered one of these names.
    """
    classes = {
        MODELS: (
            ConvNeXt,
            ConvNeXtIsotropic,
            ConvNeXtRoadmap,
            ConvNeXtSharedHead,
            FeatureBatchNorm,
            PyramidAdapter,
            SimpleFeaturePyramid,
        ),
        HOOKS: (
            ConvNeXtLoadHook,
            DurableCheckpointHook,
            FiniteModelHook,
            FiniteStepsHook,
            PrepareForInferenceHook,
            RandomStateHook,
        ),
        DATA_SAMPLERS: (SeededBatchSampler,),
        DATASETS: (SeededDataset,),
        LOOPS: (ResumableEpochLoop, ResumableIterLoop),
        OPTIM_WRAPPERS: (CPUAmpOptimWrapper,),
        OPTIM_WRAPPER_CONSTRUCTORS: (ConvNeXtLayerDecayConstructor,),
        STRATEGIES: (ConvNeXtFSDPStrategy,),
    }
    for registry, members in classes.items():
        for member in members:
            if registry.module_dict.get(member.__name__) is not member:
                registry.register_module(module=member)
    register_backend(BACKEND, DurableBackend, force=True)


def register_scope() -> None:
    """Give mmengine the scope ``convnext_dense``: what a config takes from ``convnext_dense::...`` is built in it."""
    for registry in list(vars(root).values()):
        if isinstance(registry, Registry) and SCOPE not in registry.children:
            ScopeOfConfigs(registry.name, parent=registry, scope=SCOPE)


def register_weight_sources() -> None:
    """Let mmengine's checkpoint loader read our sources: short names, ``hf-hub:``, ``timm:`` and safe paths."""
    prefixes = [SCHEME, 'hf-hub:', 'timm:', SHORT_NAME]
    CheckpointLoader.register_scheme(prefixes=prefixes, loader=load_from_convnext_dense, force=True)


def register_package_for_bases() -> None:
    """Let mmengine find the configs of this package for bases such as ``convnext_dense::mask_rcnn/...``.

    mmengine looks a package up by its distribution, which misleads it in an editable installation, and then by its
    module. The name of a module that is no distribution finds this folder in both.
    """
    MODULE2PACKAGE.setdefault('convnext_dense', 'convnext_dense.version')


def register_onedl_mmseg() -> None:
    """Let mmengine find mmseg in the OneDL distribution, whose name it does not know."""
    if importlib.util.find_spec('mmseg') is None:
        return
    try:
        importlib.metadata.version(MODULE2PACKAGE['mmseg'])
    except importlib.metadata.PackageNotFoundError:
        MODULE2PACKAGE['mmseg'] = 'mmseg'
