"""What reads labels and comes by the extra [data]: supervision, and defusedxml with it.

supervision's readers of whole folders are not used: they fill masks for boxes that lie in a file with outlines, turn
outlines into pixels, and do not look into sub-folders. Its parsers of one image's labels do none of this when asked for
no masks.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from convnext_dense.errors import UserError


def supervision_parser(file_format: str) -> ModuleType:
    """Return supervision's module for a format: 'yolo', 'pascal_voc' or 'labelme'."""
    return _module(f'supervision.dataset.formats.{file_format}')


def safe_xml() -> ModuleType:
    """Return an ``ElementTree`` that refuses the entities by which a small file fills the memory."""
    return _module('defusedxml.ElementTree')


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        package = name.partition('.')[0]
        if error.name != package:
            raise
        raise UserError(
            f"these labels are read with {package}, which is not installed: pip install 'convnext-dense[data]'"
        ) from None
