"""Import every file that registers a family."""

from convnext_dense.export import segmentor, single_stage, two_stage

__all__ = ['segmentor', 'single_stage', 'two_stage']
