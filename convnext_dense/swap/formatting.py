"""Config values as Python source text, and errors as one line."""

from __future__ import annotations

import keyword
from typing import Any

LINE_WIDTH = 120

INDENT = 4


def as_source(value: Any, column: int, indent: int = 0) -> str:
    """Return Python source for a config value, in lines of at most 120 characters where that is possible.

    Args:
        value: Dicts, lists and tuples are broken into lines; of anything else the text is ``repr``.
        column: Where the text begins in its line.
        indent: Of the line in which it begins.
    """
    flat = as_line(value)
    opening, keys, items, closing = _parts(value)
    if column + len(flat) <= LINE_WIDTH or not items:
        return flat
    inner_indent = indent + INDENT
    lines = [opening]
    for key, item in zip(keys, items):
        text = as_source(item, inner_indent + len(key) + 1, inner_indent)
        lines.append(f'{" " * inner_indent}{key}{text},')
    lines.append(' ' * indent + closing)
    return '\n'.join(lines)


def as_line(value: Any) -> str:
    """Return Python source for a config value in one line of any length."""
    opening, keys, items, closing = _parts(value)
    if not opening:
        return repr(value)
    text = ', '.join(key + as_line(item) for key, item in zip(keys, items))
    if isinstance(value, tuple) and len(items) == 1:
        text += ','
    return opening + text + closing


def error_summary(error: Exception) -> str:
    """Return the type of an error and the first 300 characters of its text, in one line."""
    return f'{type(error).__name__}: {" ".join(str(error).split())[:300]}'


def _parts(value: Any) -> tuple[str, list[str], list[Any], str]:
    """Return opening bracket, text before each item, items and closing bracket; empty if it is no collection."""
    if isinstance(value, dict):
        keys_are_names = all(
            isinstance(key, str) and key.isidentifier() and not keyword.iskeyword(key) for key in value
        )
        if keys_are_names:
            return 'dict(', [f'{key}=' for key in value], list(value.values()), ')'
        return '{', [f'{key!r}: ' for key in value], list(value.values()), '}'
    if type(value) is list:
        return '[', [''] * len(value), value, ']'
    if type(value) is tuple:
        return '(', [''] * len(value), list(value), ')'
    return '', [], [], ''
