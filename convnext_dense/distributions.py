"""The distributions of the host toolkits, and which of them are installed.

Imports nothing but the standard library: ``tools/install_mmcv.py`` runs this file by its path, before the package is
installed.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable

# By the extra that installs them. Both sets share their import names: in one environment each overwrites files of the
# other.
TOOLKIT_SETS = {
    'openmmlab': ('mmengine', 'mmcv', 'mmcv-lite', 'mmdet', 'mmsegmentation'),
    'onedl': ('onedl-mmengine', 'onedl-mmcv', 'onedl-mmdetection', 'onedl-mmsegmentation'),
}
# All of these own the folder ``mmcv``.
MMCV_DISTRIBUTIONS = ('mmcv', 'mmcv-lite', 'onedl-mmcv')


def installed(names: Iterable[str]) -> dict[str, str]:
    """Return the versions of those distributions that are installed here."""
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def installed_sets() -> dict[str, dict[str, str]]:
    """Return what is installed of each set that anything is installed of."""
    found = {extra: installed(names) for extra, names in TOOLKIT_SETS.items()}
    return {extra: versions for extra, versions in found.items() if versions}
