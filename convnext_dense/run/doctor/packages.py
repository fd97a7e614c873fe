"""Checks of the installed packages: which, which versions, whether they go together, and whether there are two copies.

Each reads ``sys.path`` as it is; none imports mmdet or mmseg.
"""

from __future__ import annotations

import configparser
import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from convnext_dense.distributions import MMCV_DISTRIBUTIONS, TOOLKIT_SETS, installed, installed_sets
from convnext_dense.errors import UserError
from convnext_dense.mmcv_ops.finder import EXTENSION, install, mixed_distributions, operators_in_use
from convnext_dense.run.doctor.diagnosis import Diagnosis, note, ok, problem, problem_of, reason_of
from convnext_dense.toolkits import INSTALL_MMCV, install_errors
from convnext_dense.version import __version__

PACKAGE = Path(__file__).resolve().parents[2]
# Import names of which there must be one copy.
IMPORTED = ('convnext_dense', 'torch', 'torchvision', 'mmengine', 'mmcv', 'mmdet', 'mmseg')
TOOLKITS = ('mmdet', 'mmsegmentation', 'onedl-mmdetection', 'onedl-mmsegmentation')
# What a training can do without.
OPTIONAL = {
    'torchvision': "mmcv's operators of this package are slower without its kernels",
    'ftfy': 'mmseg cannot be imported without it',
    'regex': 'mmseg cannot be imported without it',
    'scikit-learn': 'the sample data are made of its digits',
}


def toolkit_set() -> Iterator[Diagnosis]:
    """Whether one set of toolkits is installed, OpenMMLab's or OneDL's."""
    found = installed_sets()
    listed = {extra: ', '.join(f'{name} {version}' for name, version in found[extra].items()) for extra in found}
    if not found:
        yield problem(
            'neither the toolkits of OpenMMLab nor those of OneDL are installed',
            'detectors and segmentors are theirs',
            "pip install 'convnext-dense[openmmlab]'",
        )
    elif len(found) > 1:
        others = ' '.join(found['onedl'])
        yield problem(
            f'toolkits of OpenMMLab ({listed["openmmlab"]}) and of OneDL ({listed["onedl"]}) are in one environment',
            'they have the same import names: each has overwritten files of the other',
            f'pip uninstall -y {others}; then pip install --force-reinstall --no-deps {" ".join(found["openmmlab"])}',
        )
    else:
        (extra,) = found
        yield ok(f'{listed[extra]} (those of [{extra}])')


def requirements() -> Iterator[Diagnosis]:
    """Whether what the extra in use asks for is installed, in versions that it allows."""
    extra = next(iter(installed_sets()), 'openmmlab')
    wanted = _requirements_of_extra(extra)
    if not wanted:
        yield note(
            'the requirements of convnext_dense are not known: it runs from a folder without its setup.cfg',
            'versions were not compared',
            "install it: pip install 'convnext-dense[openmmlab]'",
        )
    good = []
    for text in wanted:
        name = _name_of(text)
        # A compiled mmcv stands for mmcv-lite.
        names = MMCV_DISTRIBUTIONS if name in MMCV_DISTRIBUTIONS else (name,)
        versions = installed(names)
        if not versions:
            yield _missing(name, text, extra)
        for found, version in versions.items():
            if _allows(text, version):
                good.append(f'{found} {version}')
            else:
                yield problem(
                    f'{found} {version} is installed, wanted is {text}',
                    'this package does not work with that version',
                    f'pip install {text!r}',
                )
    if good:
        yield ok(', '.join(good))


def _requirements_of_extra(extra: str) -> list[str]:
    """Return the requirements of an extra: of the checkout that runs, or as it was installed."""
    setup = PACKAGE.parent / 'setup.cfg'
    if setup.is_file():
        config = configparser.ConfigParser()
        config.read(setup, encoding='utf-8')
        lines = config['options.extras_require'][extra].splitlines()
        return [line for line in lines if line and not line.startswith('#')]
    try:
        requires = importlib.metadata.requires('convnext-dense') or []
    except importlib.metadata.PackageNotFoundError:
        return []
    return [text.partition(';')[0].strip() for text in requires if f'extra == "{extra}"' in text.replace("'", '"')]


def _name_of(requirement: str) -> str:
    """Return the name of a distribution in a requirement such as ``Torch (==2.13.0)``, normalised."""
    found = re.match(r'[A-Za-z0-9._-]+', requirement)
    return re.sub(r'[-_.]+', '-', found[0]).lower() if found else ''


def _versions_of(requirement: str) -> str:
    from packaging.requirements import Requirement

    return str(Requirement(requirement.strip()).specifier)


def _allows(requirement: str, version: str) -> bool:
    from packaging.requirements import Requirement

    return Requirement(requirement).specifier.contains(version, prereleases=True)


def _missing(name: str, requirement: str, extra: str) -> Diagnosis:
    what, fix = f'{name} is not installed', f'pip install {requirement!r}'
    if name in OPTIONAL:
        return note(what, OPTIONAL[name], fix)
    if name in TOOLKITS:
        other = [toolkit for toolkit in TOOLKITS if toolkit in TOOLKIT_SETS[extra] and toolkit != name]
        if installed(other):
            return note(what, 'its configs cannot be used', fix)
    return problem(what, 'a training cannot start without it', fix)


def pairs() -> Iterator[Diagnosis]:
    """Whether installed packages have the versions of each other that they ask for."""
    names = ['torch', 'torchvision', *(name for names in TOOLKIT_SETS.values() for name in names)]
    versions = installed(names)
    compared = 0
    for owner, own_version in versions.items():
        for text in importlib.metadata.requires(owner) or []:
            requirement, _, marker = text.partition(';')
            # Toolkits name mmcv and mmengine under the extra of their own installer.
            if 'extra' in marker and 'mim' not in marker:
                continue
            name = _name_of(requirement)
            peers = versions if name not in MMCV_DISTRIBUTIONS else installed(MMCV_DISTRIBUTIONS)
            peers = {peer: version for peer, version in peers.items() if peer == name or name in MMCV_DISTRIBUTIONS}
            for peer, version in peers.items():
                compared += 1
                if not _allows(requirement.strip(), version):
                    yield problem(
                        f'{owner} {own_version} wants {requirement.strip()}, found {peer} {version}',
                        'they do not work together: importing one of them fails, or its operators are missing',
                        f"pip install '{peer}{_versions_of(requirement)}'",
                    )
    yield ok(f'{compared} requirements of installed packages on each other were compared')


def operators() -> Iterator[Diagnosis]:
    """Whether mmcv has its operators, and whether two distributions of it overwrite each other."""
    mixture = mixed_distributions()
    if mixture is not None:
        what, _, fix = mixture.partition(': ')
        yield problem(what, 'files of several versions lie in one folder, and removing one removes files of both', fix)
    install()
    using = operators_in_use()
    if using.startswith('none:'):
        return  # mmcv is not installed, which `requirements` says
    try:
        with install_errors():
            importlib.import_module(EXTENSION if using.startswith('compiled:') else 'torchvision')
    except UserError as error:
        yield problem_of(error, "every detector needs mmcv's operators")
    except Exception as error:
        reason = reason_of(error)
        if isinstance(error, ModuleNotFoundError) and error.name == 'torchvision':
            yield ok(using)  # of torch alone
        elif using.startswith('compiled:'):
            yield problem(
                f'the compiled operators of mmcv do not go with this torch ({reason})',
                "every detector needs mmcv's operators",
                f'pip uninstall -y mmcv; {INSTALL_MMCV}',
            )
        else:
            yield problem(
                f'torchvision cannot be imported ({reason})',
                "mmcv's operators of this package call its kernels",
                'install the pair of constraints.txt: pip install -c constraints.txt torch torchvision',
            )
    else:
        yield ok(using)


def duplicates() -> Iterator[Diagnosis]:
    """Whether Python finds two copies of a package, and which distribution owns the one that it takes."""
    owners = importlib.metadata.packages_distributions()
    taken_ones = []
    for name in IMPORTED:
        places = _places(name)
        if not places:
            continue
        taken, *others = places
        if others:
            yield note(
                f'{name} lies in {taken} and in {" and ".join(map(str, others))}',
                f'Python takes the first; a process that starts in another folder may take another {name}',
                'leave one: `pip uninstall` a copy that is installed, or take its folder off PYTHONPATH; '
                'do not start in a folder that holds the other',
            )
        owner = sorted(set(owners.get(name, ())))
        if len(owner) > 1 and name != 'mmcv':  # of mmcv, `operators` says it
            yield problem(
                f'the folder {taken} belongs to {" and ".join(owner)}',
                'the one that was installed last has overwritten files of the other',
                f'pip uninstall -y {" ".join(owner)}; then install one of them',
            )
        elif not owner and name != 'convnext_dense':  # a checkout of ours is well
            yield note(
                f'{name} of {taken} belongs to no installed distribution',
                'its version is not known to pip, and was not compared',
                f'remove the folder, or install it: pip install -e {taken.parent}',
            )
        elif owner and owner != [name]:
            taken_ones.append(f'{name} is of {owner[0]}')
    yield ok('; '.join(taken_ones) or 'every package is of the distribution of its name')


def _places(name: str) -> list[Path]:
    """Return the folders of all copies of a package on the path, the one that Python takes first."""
    found = []
    try:
        specs = [importlib.util.find_spec(name)]
    except (ImportError, ValueError):
        specs = []
    specs += [importlib.machinery.PathFinder.find_spec(name, [entry]) for entry in sys.path]
    for spec in specs:
        if spec is not None and spec.origin is not None:  # a folder without __init__.py is none
            folder = Path(spec.origin).resolve().parent
            if folder not in found:
                found.append(folder)
    return found


def package() -> Iterator[Diagnosis]:
    """Whether ``import convnext_dense`` works, which imports torch and mmengine."""
    failure = import_error()
    if failure is None:
        yield ok(f'convnext_dense {__version__} of {PACKAGE} can be imported')
        return
    why = 'no tool and no config of this package works'
    try:
        with install_errors():
            raise failure
    except UserError as error:
        yield problem_of(error, why)
    except Exception as error:
        yield problem(
            f'convnext_dense cannot be imported ({reason_of(error)})',
            why,
            "correct the problems above, or pip install --force-reinstall 'convnext-dense[openmmlab]'",
        )


def import_error() -> Exception | None:
    """Import this package, where a tool has put its bare folder in its place; return what that raises."""
    bare = sys.modules['convnext_dense']
    if getattr(bare, '__file__', None):
        return None  # imported already
    del sys.modules['convnext_dense']
    try:
        importlib.import_module('convnext_dense')
    except Exception as error:  # damaged packages can fail in every way
        sys.modules['convnext_dense'] = bare
        return error
    return None


# In the order in which they run.
CHECKS = (toolkit_set, requirements, pairs, duplicates, operators)
