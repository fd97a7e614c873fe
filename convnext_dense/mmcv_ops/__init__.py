"""The operators of ``mmcv.ops`` without compiling mmcv: its module ``mmcv._ext``, made of torchvision and torch."""

from convnext_dense.mmcv_ops.finder import has_compiled_operators, install, mixed_distributions, operators_in_use

__all__ = ['has_compiled_operators', 'install', 'mixed_distributions', 'operators_in_use']
