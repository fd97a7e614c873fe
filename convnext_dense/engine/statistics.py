"""Compare the input statistics of weights with those of the data preprocessor."""

from __future__ import annotations

from mmengine.model import BaseDataPreprocessor
from torch import nn

from convnext_dense.errors import UserError
from convnext_dense.models.loading import PretrainedModule


def check_statistics(model: nn.Module) -> None:
    """Compare what every ConvNeXt in a model was trained with and what its inputs are normalised by.

    Weights of which nothing is known, and preprocessors that do not normalise three channels, are left alone.

    Args:
        model: With its data preprocessor, as a runner has it.

    Raises:
        UserError: They contradict each other, and the ConvNeXt has not ``allow_statistics_mismatch=True``.
    """
    preprocessors = [module for module in model.modules() if isinstance(module, BaseDataPreprocessor)]
    normalising = [module for module in preprocessors if len(getattr(module, 'mean', ())) == 3]
    for backbone in model.modules():
        if not isinstance(backbone, PretrainedModule) or backbone.allow_statistics_mismatch:
            continue
        wanted = backbone.weights_statistics
        for preprocessor in normalising:
            mean, std = (getattr(preprocessor, key).flatten().tolist() for key in ('mean', 'std'))
            if wanted and not wanted.agrees(mean, std):
                raise UserError(
                    f'{backbone.weights_source} was trained with the input statistics of {wanted.name}, the '
                    f'data_preprocessor has mean={mean}, std={std}: set {wanted.as_written()}, bgr_to_rgb=True in it, '
                    'or allow_statistics_mismatch=True in the backbone'
                )
