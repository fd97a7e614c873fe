"""A whole model as one module, from the raw image to the result, and the registry of the families that there are.

Another family is one more file: a subclass of :class:`WholeModel` under :func:`family`, imported in
``families.py``.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from convnext_dense.errors import UserError


class WholeModel(nn.Module):
    """A detector or segmentor with its preprocessing and postprocessing inside, made to be exported.

    Input ``image`` (N, 3, H, W), RGB 0 to 255, float32. Batch, height and width are free.

    Args:
        model: Of mmdet or mmseg, in ``eval()`` mode. Its parts are used, not copied.

    Attributes:
        output_names: Of the tensors that :meth:`forward` returns, in order.
        task: ``'detection'`` or ``'segmentation'``.
    """

    output_names: tuple[str, ...] = ()
    task: ClassVar[str]
    mean: Tensor
    std: Tensor

    def __init__(self, model: Any) -> None:
        super().__init__()
        preprocessor = model.data_preprocessor
        mean: Any = getattr(preprocessor, 'mean', None)
        std: Any = getattr(preprocessor, 'std', None)
        self.normalises = mean is not None and std is not None
        if self.normalises:
            if mean.shape[0] not in (1, 3):
                raise UserError(
                    f'a whole model is exported with images of 3 channels, found a mean of {mean.shape[0]} values: '
                    'export --part backbone or --part neck'
                )
            self.register_buffer('mean', mean.detach().clone().view(1, -1, 1, 1))
            self.register_buffer('std', std.detach().clone().view(1, -1, 1, 1))
        converts = getattr(preprocessor, 'channel_conversion', getattr(preprocessor, '_channel_conversion', False))
        self.wants_bgr = not converts  # mmcv reads BGR
        self.divisor, self.pad_value = padding_of(preprocessor)
        self.backbone: Any = model.backbone
        self.neck: Any = model.neck if getattr(model, 'with_neck', False) else None

    @classmethod
    def refusal(cls, model: Any) -> str | None:
        """Return why ``model`` is not of this family, or None if it is."""
        raise NotImplementedError

    @classmethod
    def settings(cls, model: Any) -> dict[str, Any]:
        """Return what the runner needs to know, as JSON values; becomes metadata of the file."""
        return {}

    def normalised(self, image: Tensor) -> Tensor:
        """Return the input of the backbone: (N, 3, H, W) -> (N, 3, padded height, padded width)."""
        height, width = image.shape[-2:]
        if self.wants_bgr:
            image = image.flip(1)
        if self.normalises:
            image = (image - self.mean) / self.std
        if self.divisor > 1:
            padded_height = (height + self.divisor - 1) // self.divisor * self.divisor
            padded_width = (width + self.divisor - 1) // self.divisor * self.divisor
            image = F.pad(image, (0, padded_width - width, 0, padded_height - height), value=self.pad_value)
        return image

    def core(self, normalised: Tensor, limit: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs for what :class:`Preparation` returns; detectors only."""
        raise NotImplementedError

    def features(self, normalised: Tensor) -> tuple[Tensor, ...]:
        """Return the features of all levels for the input of the backbone."""
        features = self.backbone(normalised)
        return tuple(features if self.neck is None else self.neck(features))


FAMILIES: list[type[WholeModel]] = []


def family(cls: type[WholeModel]) -> type[WholeModel]:
    """Register a family; a class decorator."""
    FAMILIES.append(cls)
    return cls


def whole_model(model: Any) -> WholeModel:
    """Return ``model`` of mmdet or mmseg as a module to export.

    Raises:
        UserError: No family fits.
    """
    reasons = []
    for candidate in FAMILIES:
        reason = candidate.refusal(model)
        if reason is None:
            return candidate(model).eval()
        reasons.append(f'{candidate.__name__}: {reason}')
    # A family that takes models of this class says more than those that do not.
    nearest = [reason for reason in reasons if f': {type(model).__name__}.' not in reason] or reasons
    raise UserError(
        f'a whole {type(model).__name__} cannot be exported ({"; ".join(nearest)}): '
        'export --part backbone or --part neck instead'
    )


def owner(module: Any, method: str) -> str:
    """Return the name of the class that defines ``method`` of ``module``; empty if there is none.

    A family mirrors the postprocessing of one class of the toolkit. A subclass that overrides it computes something
    else, whatever its name is.
    """
    for cls in type(module).__mro__:
        if method in vars(cls):
            return cls.__name__
    return ''


def overridden(module: Any, methods: dict[str, str]) -> str | None:
    """Return a clause about the first of ``methods`` that is not the one of its expected class, or None."""
    for method, expected in methods.items():
        found = owner(module, method)
        if found != expected:
            return f'{type(module).__name__}.{method} is {found or "missing"}, {expected} was wanted'
    return None


def padding_of(preprocessor: Any) -> tuple[int, float]:
    """Return divisor and value of the padding at test time."""
    test_cfg = getattr(preprocessor, 'test_cfg', None) or {}
    if test_cfg.get('size') is not None:
        raise UserError(
            f'the data_preprocessor pads every test image to {test_cfg["size"]}: set '
            'model.data_preprocessor.test_cfg=None, or export --part backbone'
        )
    if hasattr(preprocessor, 'pad_size_divisor'):  # mmdet
        return int(preprocessor.pad_size_divisor), float(preprocessor.pad_value)
    return int(test_cfg.get('size_divisor') or 1), float(getattr(preprocessor, 'pad_val', 0))
