"""All checks of the doctor, in the order in which they run, and how their findings are shown."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, replace
from pathlib import Path

from convnext_dense.run.doctor import machine, packages
from convnext_dense.run.doctor.diagnosis import LEVELS, PROBLEM, Diagnosis, problem, run_check

DEFAULT_WORK_DIR = 'work_dirs'
# What every training needs. The last one takes seconds.
CHECKS: tuple[Callable[..., Iterator[Diagnosis]], ...] = (*packages.CHECKS, *machine.CHECKS, packages.package)


def doctor(
    config: str | None = None,
    *,
    cfg_options: Sequence[str] = (),
    work_dir: str | None = None,
    data_check: bool = True,
    decode: bool = False,
    as_json: bool = False,
) -> int:
    """Print what would make a training fail, and what a user should know before one.

    Args:
        config: The config file of a training; without one, what every training needs is checked.
        cfg_options, work_dir, data_check, decode: As for :func:`convnext_dense.run.train_test.train`.
        as_json: Print one JSON object instead of lines.

    Returns:
        The exit status: 1 if there is a problem, otherwise 0.
    """
    found = []
    stream = sys.stdout
    with redirect_stdout(sys.stderr):  # what libraries print on the way
        for diagnosis in diagnose(config, cfg_options, work_dir, data_check, decode):
            found.append(diagnosis)
            if not as_json:
                print(_lines(diagnosis), file=stream, flush=True)
    counts = {level: sum(diagnosis.level == level for diagnosis in found) for level in LEVELS}
    if as_json:
        print(json.dumps(dict(findings=[asdict(diagnosis) for diagnosis in found], counts=counts), indent=2))
    else:
        print(f'\n{counts["problem"]} problems, {counts["note"]} notes')
    return int(counts[PROBLEM] > 0)


def _lines(diagnosis: Diagnosis) -> str:
    lines = [f'{diagnosis.level:<8} {diagnosis.check}: {diagnosis.what}']
    if diagnosis.why:
        lines += [f'{"":<8}   why: {diagnosis.why}', f'{"":<8}   fix: {diagnosis.fix}']
    return '\n'.join(lines)


def diagnose(
    config: str | None = None,
    cfg_options: Sequence[str] = (),
    work_dir: str | None = None,
    data_check: bool = True,
    decode: bool = False,
) -> Iterator[Diagnosis]:
    """Yield what each check finds; the arguments are those of :func:`doctor`."""
    for check in CHECKS:
        if check is not machine.work_folder:
            yield from run_check(check)
        elif config is None:  # a config has a work folder of its own
            yield from run_check(check, Path(work_dir or DEFAULT_WORK_DIR))
    if config is None:
        return
    try:
        training = importlib.import_module('convnext_dense.run.doctor.training')
    except Exception as error:  # torch or mmengine are missing or damaged
        what = f'{config} was not checked: {type(error).__name__}: {" ".join(str(error).split())[:200]}'
        why = 'torch and mmengine read configs and build models'
        yield replace(problem(what, why, 'correct the problems above, then run the doctor again'), check='config')
        return
    subject = training.Training(config, cfg_options, work_dir, data_check, decode)
    for check in training.CHECKS:
        levels = []
        for diagnosis in run_check(check, subject):
            levels.append(diagnosis.level)
            yield diagnosis
        if check in training.NEEDED and PROBLEM in levels:
            return
