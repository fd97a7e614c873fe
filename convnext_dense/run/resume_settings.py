"""Compare the config of a resumed training with the one that its checkpoint was made by, and say which value counts.

What the runner restores from the checkpoint (the settings of optimizer and schedules, and the seed) is not changed by
the config; all else is.
"""

from __future__ import annotations

import ast
from typing import Any

from convnext_dense.errors import UserError

CHECKPOINT_COUNTS = (
    'optim_wrapper.optimizer.',
    'optim_wrapper.paramwise_cfg',
    'optim_wrapper.loss_scale',
    'param_scheduler',
    'randomness.seed',
)
# Where a run is, what it writes to its log and what names it: not settings of the training.
NOT_COMPARED = (
    'work_dir', 'load_from', 'resume', 'launcher', 'log_level', 'experiment_name', 'local_rank', 'visualizer'
)  # fmt: skip
LONGEST_VALUE = 36  # characters
MISSING = '(not set)'


def compare_settings(saved: Any, current: str, seed: int | None) -> list[str]:
    """Return a table of the settings that differ, with what counts, as lines; empty if none does.

    Args:
        saved: Text of the config in the checkpoint, as mmengine writes it. It is read as literals, never executed.
        current: Text of the config of this run.
        seed: The one that the checkpoint was made with. A config may leave it out; the first run has then drawn it.

    Raises:
        UserError: The schedules are of other types than those whose state is in the checkpoint.
    """
    before, after = _settings(saved), _settings(current)
    if before is None or after is None:
        return ['the checkpoint holds no config that can be compared with this one: its settings may differ']
    for settings in (before, after):
        randomness = settings.get('randomness') or {}
        if seed is not None and isinstance(randomness, dict) and randomness.get('seed') is None:
            settings['randomness'] = dict(randomness, seed=seed)
    _check_schedule_types(before.get('param_scheduler'), after.get('param_scheduler'))
    rows = []
    for key, old, new in _differences(before, after, ''):
        if key.split('.')[0] in NOT_COMPARED:
            continue
        kept = key.startswith(CHECKPOINT_COUNTS)
        rows.append((key, _short(old), _short(new), "the checkpoint's" if kept else "the config's"))
    if not rows:
        return []
    rows.insert(0, ('setting', 'checkpoint', 'config', 'what counts'))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = ['settings that differ from those of the checkpoint:']
    for row in rows:
        padded = [value.ljust(width) for value, width in zip(row, widths, strict=False)]
        lines.append('  ' + '  '.join([*padded, row[3]]))
    if any(row[3] == "the checkpoint's" for row in rows):
        lines.append('for the values of the config give the checkpoint as load_from, without --resume')
    return lines


def _check_schedule_types(saved: Any, current: Any) -> None:
    before, after = _types(saved), _types(current)
    if before != after:
        raise UserError(
            f'the checkpoint holds the state of {", ".join(before)}, param_scheduler of the config is '
            f'{", ".join(after)}: resume with the schedules of the first run, or give the file as load_from, without '
            '--resume'
        )


def _types(schedules: Any) -> list[str]:
    if isinstance(schedules, dict):
        schedules = [schedules]
    if not isinstance(schedules, (list, tuple)):
        return []
    return [str(schedule.get('type')).rpartition('.')[2] for schedule in schedules if isinstance(schedule, dict)]


def _settings(text: Any) -> dict[str, Any] | None:
    """Read the assignments of a dumped config; None if they are more than literals."""
    if not isinstance(text, str):
        return None
    try:
        statements = ast.parse(text).body
        settings = {}
        for statement in statements:
            if not isinstance(statement, ast.Assign) or not isinstance(statement.targets[0], ast.Name):
                return None
            settings[statement.targets[0].id] = _literal(statement.value)
    except (SyntaxError, ValueError, RecursionError):
        return None
    return settings


def _literal(node: ast.expr) -> Any:
    """Return the value of an expression of constants, containers and ``dict(key=value)``.

    Raises:
        ValueError: It is something else.
    """
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name) and node.id in ('inf', 'nan'):
        return float(node.id)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_literal(node.operand)
    if isinstance(node, (ast.List, ast.Tuple, ast.Set)):
        return [_literal(item) for item in node.elts]
    if isinstance(node, ast.Dict) and None not in node.keys:
        return {str(_literal(key)): _literal(value) for key, value in zip(node.keys, node.values, strict=True) if key}
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        if node.func.id == 'dict' and not node.args:
            return {word.arg: _literal(word.value) for word in node.keywords if word.arg}
        if node.func.id == 'set' and not node.args:
            return []
    raise ValueError(ast.dump(node))


def _differences(before: Any, after: Any, key: str) -> list[tuple[str, Any, Any]]:
    """Return (key, old, new) of the innermost values that differ, in the order of the config."""
    if isinstance(before, dict) and isinstance(after, dict):
        pairs = [(name, before.get(name, MISSING), after.get(name, MISSING)) for name in {**after, **before}]
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = [(str(i), *values) for i, values in enumerate(zip(before, after, strict=True))]
    else:
        return [] if repr(before) == repr(after) else [(key, before, after)]
    found = []
    for name, old, new in pairs:
        found += _differences(old, new, f'{key}.{name}' if key else name)
    return found


def _short(value: Any) -> str:
    text = value if value is MISSING else repr(value)
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 3] + '...'
