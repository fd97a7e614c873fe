"""The numbers of the official recipes, read from the configs of this package."""

from __future__ import annotations

import runpy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import ConfigDict

from convnext_dense.swap.config_tree import as_list

CONFIGS = Path(__file__).resolve().parents[1] / '.mim' / 'configs'

# Recipes of all archs, and the schedule that they share.
DETECTION = ('cascade_mask_rcnn/convnext_*_coco.py', '_base_/coco_3x.py')

SEGMENTATION = ('upernet/convnext_*_ade20k.py', '_base_/ade20k_160k.py')

FALLBACK_ARCH = 'tiny'  # of archs that have no recipe


@dataclass(frozen=True)
class Recipe:
    """How ConvNeXt is fine-tuned.

    Attributes:
        drop_path_rate, layer_scale_init_value: Of the backbone.
        paramwise_cfg: Layer decay.
        optimizer: Its config, with the learning rate for ``batch_size`` images.
        wrapper_type: Type of the optimizer wrapper.
        batch_size: Images per iteration.
    """

    drop_path_rate: float
    layer_scale_init_value: float
    paramwise_cfg: dict[str, Any]
    optimizer: dict[str, Any]
    wrapper_type: str
    batch_size: int


def read_recipe(arch: str | dict, segmentation: bool) -> Recipe:
    """Read the recipe of an arch.

    Drop path and layer decay are those of the first recipe, by name, with this arch: the one for ImageNet-1k weights
    where there is one. The optimizer with its learning rate is that of the schedule, which the recipes adapt to one
    model and its weights.

    Args:
        arch: Of the backbone. An arch without a recipe takes that of tiny.
        segmentation: Read a recipe of UperNet instead of Cascade Mask R-CNN.
    """
    pattern, schedule_name = SEGMENTATION if segmentation else DETECTION
    recipes: dict[Any, ConfigDict] = {}
    for path in sorted(CONFIGS.glob(pattern)):
        settings = _read_own_settings(path)
        recipes.setdefault(settings.model.backbone.arch, settings)
    has_recipe = isinstance(arch, str) and arch.lower() in recipes
    settings = recipes[arch.lower() if isinstance(arch, str) and has_recipe else FALLBACK_ARCH]
    schedule = _read_own_settings(CONFIGS / schedule_name)
    return Recipe(
        drop_path_rate=settings.model.backbone.drop_path_rate,
        layer_scale_init_value=settings.model.backbone.layer_scale_init_value,
        paramwise_cfg=settings.optim_wrapper.paramwise_cfg.to_dict(),
        optimizer=schedule.optim_wrapper.optimizer.to_dict(),
        wrapper_type=schedule.optim_wrapper.type,
        batch_size=schedule.auto_scale_lr.base_batch_size,
    )


def _read_own_settings(path: Path) -> ConfigDict:
    """Return the dicts that a config of this package and its bases in this package define.

    The bases in mmdet and mmseg are left out: they say nothing about ConvNeXt, and the toolkit may not be installed.
    Without them our configs are plain Python.
    """
    values = runpy.run_path(str(path))
    settings = ConfigDict()
    for base in as_list(values['_base_']):
        if '::' not in base:
            settings.merge(_read_own_settings(path.parent / base))
    settings.merge({key: value for key, value in values.items() if isinstance(value, dict) and not key.startswith('_')})
    return settings
