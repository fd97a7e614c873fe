"""What a check says, and how errors become that."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from convnext_dense.errors import UserError

OK, NOTE, PROBLEM = LEVELS = ('ok', 'note', 'problem')


@dataclass(frozen=True)
class Diagnosis:
    """Something that a check has found.

    Attributes:
        level: 'ok'; 'note' for what a user should know; 'problem' where a training would fail or could not be trusted.
        what: What was found.
        why: Why that matters; empty if it is ok.
        fix: What changes it, as a command where there is one; empty if it is ok.
        check: The name of the check.
    """

    level: str
    what: str
    why: str = ''
    fix: str = ''
    check: str = ''


def ok(what: str) -> Diagnosis:
    return Diagnosis(OK, what)


def note(what: str, why: str, fix: str) -> Diagnosis:
    return Diagnosis(NOTE, what, why, fix)


def problem(what: str, why: str, fix: str) -> Diagnosis:
    return Diagnosis(PROBLEM, what, why, fix)


def problem_of(error: UserError, why: str) -> Diagnosis:
    """Return an error as a problem: what stands behind its last colon says what to do."""
    text = ' '.join(str(error).split())
    hidden = re.sub(r'`[^`]*`|\([^()]*\)', lambda found: '_' * len(found[0]), text)
    split = hidden.rfind(': ')
    if split < 0:
        return problem(text, why, 'change what this sentence names')
    return problem(text[:split], why, text[split + 2 :])


def run_check(check: Callable[..., Iterator[Diagnosis]], *subject: Any) -> Iterator[Diagnosis]:
    """Yield what a check finds, with its name; what ends a check early is a problem too."""
    try:
        for found in check(*subject):
            yield _named(found, check)
    except UserError as error:
        yield _named(problem_of(error, 'a training ends with the same error'), check)
    except Exception as error:  # a damaged environment can fail in every way
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        fix = f'pip install {missing}' if missing else 'correct what this names, then run the doctor again'
        yield _named(
            problem(f'the check ended early by {reason_of(error)}', 'a training would meet the same error', fix), check
        )


def reason_of(error: Exception) -> str:
    """Return an error as a clause, with the file that has raised it."""
    text = ' '.join(f'{type(error).__name__}: {error}'.split())[:300]
    frames = traceback.extract_tb(error.__traceback__)
    # The last file of a package: the import system has frames of its own.
    files = [frame for frame in frames if not frame.filename.startswith('<') and 'importlib' not in frame.filename]
    return f'{text}, in {files[-1].filename}, line {files[-1].lineno}' if files else text


def _named(found: Diagnosis, check: Callable) -> Diagnosis:
    return Diagnosis(**dict(asdict(found), check=check.__name__))


def gigabytes(count: float) -> str:
    """Return a number of bytes as text, in GiB or MiB."""
    return f'{count / 2**30:.1f} GiB' if count >= 2**30 else f'{count / 2**20:.0f} MiB'
