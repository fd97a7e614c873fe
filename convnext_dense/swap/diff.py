"""What differs between two configs: for the config that is written, and for the table that is printed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from convnext_dense.swap.formatting import as_line

ABSENT: Final = object()  # a key that one of the two configs does not have

CELL_WIDTH = 60  # of the table, in characters


@dataclass(frozen=True)
class Difference:
    """A key whose values differ.

    Attributes:
        key: In the dict around it.
        before, after: The two values; ``ABSENT`` if there is none.
        inner: What differs inside, if both values are dicts.
    """

    key: str
    before: Any
    after: Any
    inner: tuple[Difference, ...] = ()


def differences(before: Mapping, after: Mapping) -> tuple[Difference, ...]:
    """Compare two configs.

    Args:
        before, after: As of ``Config.to_dict``. Values of unequal types, such as a list and a tuple, differ.

    Returns:
        What is new or changed, in the order of ``after``; then what was removed.
    """
    found = []
    for key, value in after.items():
        old_value = before.get(key, ABSENT)
        if value == old_value and type(value) is type(old_value):
            continue
        both_are_dicts = isinstance(value, dict) and isinstance(old_value, dict)
        inner = differences(old_value, value) if both_are_dicts else ()
        found.append(Difference(key, old_value, value, inner))
    for key, old_value in before.items():
        if key not in after:
            found.append(Difference(key, old_value, ABSENT))
    return tuple(found)


def overrides(found: Sequence[Difference]) -> dict[str, Any]:
    """Return what a config that inherits from the one before has to define to equal the one after.

    A dict that lost keys, or replaces another value, has ``_delete_=True``. A key that was removed at the outermost
    level stays: a config cannot remove what it inherits there.
    """
    values = {}
    for difference in found:
        if difference.after is ABSENT:
            continue
        lost_keys = any(inner.after is ABSENT for inner in difference.inner)
        if difference.inner and not lost_keys:
            values[difference.key] = overrides(difference.inner)
        elif isinstance(difference.after, dict) and difference.before is not ABSENT:
            values[difference.key] = dict(_delete_=True, **difference.after)
        else:
            values[difference.key] = difference.after
    return values


def table(found: Sequence[Difference], notes: Sequence[str]) -> str:
    """Return what differs, a line for each value, and the notes.

    Args:
        found: Of two whole configs.
        notes: What a reader should know besides.
    """
    rows = [('', 'before', 'after'), *_rows(found)]
    path_width = max(len(path) for path, _, _ in rows)
    before_width = max(len(before) for _, before, _ in rows)
    lines = [f'{path:<{path_width}}  {before:<{before_width}}  {after}'.rstrip() for path, before, after in rows]
    return '\n'.join(lines + [f'note: {note}' for note in notes])


def _rows(found: Sequence[Difference], prefix: str = '') -> Iterator[tuple[str, str, str]]:
    """Yield (path, before, after) as text for each value; a dict whose ``type`` differs is one value."""
    for difference in found:
        path = prefix + difference.key
        before, after = difference.before, difference.after
        if difference.inner and before.get('type') == after.get('type'):
            yield from _rows(difference.inner, f'{path}.')
        else:
            yield path, '' if before is ABSENT else _cell(before), '(removed)' if after is ABSENT else _cell(after)


def _cell(value: Any) -> str:
    if isinstance(value, dict) and 'type' in value:
        arguments = [f'{key}={as_line(item)}' for key, item in value.items() if key not in ('type', '_delete_')]
        text = f'{value["type"]}({", ".join(arguments)})'
    else:
        text = as_line(value)
    return text if len(text) <= CELL_WIDTH else text[: CELL_WIDTH - 1] + '…'
