"""Read the config to swap, and write a config that inherits from it."""

from __future__ import annotations

import tempfile
from pathlib import Path

from mmengine.config import Config

from convnext_dense.errors import UserError
from convnext_dense.outputs import whole_files
from convnext_dense.swap.diff import differences, overrides
from convnext_dense.swap.formatting import as_source, error_summary


def read_config(path: str | Path) -> Config:
    """Read a config without importing the modules that it names: those of the old backbone may be missing.

    Args:
        path: Of a file, or ``'mmdet::...'``.

    Raises:
        UserError: It cannot be read.
    """
    base = base_of(path)
    with tempfile.TemporaryDirectory() as folder:
        # mmengine resolves 'mmdet::...' in _base_ only.
        heir = Path(folder) / 'heir.py'
        heir.write_text(f'_base_ = {base!r}\n')
        try:
            cfg = Config.fromfile(heir, import_custom_modules=False)
        except (OSError, ImportError, RuntimeError, ValueError, SyntaxError) as error:
            if 'lazy_import' in str(error):
                raise UserError(
                    f'{path} is a new-style config, whose types are Python objects: write it with types as text by '
                    "Config.fromfile(...).dump('flat.py'), and give that file"
                ) from error
            raise UserError(f'the config {path} cannot be read: {error_summary(error)}') from error
    object.__setattr__(cfg, '_filename', base)  # Config's own __setattr__ would set a key of the config
    return cfg


def base_of(path: str | Path) -> str:
    """Return how to inherit from a config in any folder: ``'mmdet::...'`` as it is, a path in full."""
    return str(path) if '::' in str(path) else str(Path(path).resolve())


def write_config(source: str | Path | None, before: Config, after: Config, out: str | Path) -> None:
    """Write a config that inherits from ``source`` and holds the difference; it works in any folder.

    It is read back before it gets its name: a file that would not equal ``after`` is never left behind.

    Args:
        source: Where ``before`` was read from, as in :func:`read_config`.
        before, after: The config without and with our backbone.
        out: The file to write.

    Raises:
        UserError: Nothing can inherit from ``before``, or not with these changes, or ``out`` is ``source`` or cannot be
            written.
    """
    out = Path(out)
    if not source:
        raise UserError('this config was not read from a file, so none can inherit from it: use Config.dump')
    base = base_of(source)
    if out.resolve() == Path(base):
        raise UserError(f'{out} is the config to swap: give another file to write')
    with whole_files(out) as draft:
        draft.write_text(_source_text(base, before, after))
        if Config.fromfile(draft, import_custom_modules=False).to_dict() != after.to_dict():
            raise UserError(
                f'{base} cannot be inherited from with these changes: use swap_backbone in Python and Config.dump'
            )


def _source_text(base: str, before: Config, after: Config) -> str:
    lines = [f'# {Path(base).name} with ConvNeXt, made by tools/swap_backbone.py', f'_base_ = {base!r}']
    values = overrides(differences(before.to_dict(), after.to_dict()))
    for key in sorted(values, key=lambda key: key != 'custom_imports'):  # imports first
        lines.append(f'{key} = {as_source(values[key], len(key) + 3)}')
    return '\n'.join(lines) + '\n'
