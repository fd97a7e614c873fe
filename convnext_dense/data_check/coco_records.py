"""Read a COCO file record by record, so that memory holds its text and one record, not millions of Python numbers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SECTIONS = ('images', 'annotations', 'categories')
_DECODER = json.JSONDecoder()
_BLANKS = re.compile(r'[ \t\n\r]*')


def coco_records(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield ``(section, record)`` for each record of images, annotations and categories, in the order of the file.

    A section that is no list is yielded as one record ``(section, None)``, and an empty list as ``(section, ...)``.

    Raises:
        ValueError: The file is not JSON (``json.JSONDecodeError``), not UTF-8, or no object.
    """
    text = path.read_text(encoding='utf-8')
    position = _skip(text, 0)
    if text[position : position + 1] != '{':
        json.loads(text)  # raises if it is no JSON at all
        raise ValueError('the file is JSON, but no object with images, annotations and categories')
    position = _skip(text, position + 1)
    while text[position : position + 1] != '}':
        start = position
        section, position = _DECODER.raw_decode(text, start)
        if not isinstance(section, str):
            raise json.JSONDecodeError('Expecting property name enclosed in double quotes', text, start)
        position = _expect(text, position, ':')
        if section in SECTIONS and text[position : position + 1] == '[':
            position = _skip(text, position + 1)
            if text[position : position + 1] == ']':
                yield section, ...
            while text[position : position + 1] != ']':
                record, position = _DECODER.raw_decode(text, position)
                yield section, record
                position = _comma_or(text, position, ']')
            position += 1
        else:
            _, position = _DECODER.raw_decode(text, position)
            if section in SECTIONS:
                yield section, None
        position = _comma_or(text, position, '}')
    if _skip(text, position + 1) != len(text):
        raise json.JSONDecodeError('Extra data', text, position + 1)


def _skip(text: str, position: int) -> int:
    """Return the position of the next character that is no blank."""
    found = _BLANKS.match(text, position)
    assert found is not None  # the pattern matches nothing, too
    return found.end()


def _expect(text: str, position: int, character: str) -> int:
    """Return the position of the next value, behind ``character``."""
    position = _skip(text, position)
    if text[position : position + 1] != character:
        raise json.JSONDecodeError(f'Expecting {character!r} delimiter', text, position)
    return _skip(text, position + 1)


def _comma_or(text: str, position: int, end: str) -> int:
    """Return the position of the next value, behind a comma, or of ``end``."""
    position = _skip(text, position)
    if text[position : position + 1] == end:
        return position
    position = _expect(text, position, ',')
    if text[position : position + 1] == end:
        raise json.JSONDecodeError('Illegal trailing comma before end', text, position)
    return position
