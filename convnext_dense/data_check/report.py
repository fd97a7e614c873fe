"""Tell the user what was found, in a line and a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from convnext_dense.data_check.findings import Finding
from convnext_dense.errors import DiagnosableError

REPORT = 'data_check.txt'
SHOWN = 3  # fatal findings in the message, all of them are in the file


def report(findings: Sequence[Finding], folder: str | Path) -> None:
    """Write all findings into ``folder``, count the harmless ones in a line, and stop if one is fatal.

    Args:
        findings: Of :func:`convnext_dense.data_check.check.check_data`.
        folder: The work folder of the run; a report of an earlier run in it is removed.

    Raises:
        DiagnosableError: A finding is fatal.
    """
    path = Path(folder) / REPORT
    if not findings:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('\n\n'.join(map(_paragraph, findings)) + '\n', encoding='utf-8')
    harmless = [finding for finding in findings if not finding.fatal]
    if harmless:
        counts = '; '.join(f'{len(finding.records) or 1} x {finding.what}' for finding in harmless)
        print(f'data check: {counts} (listed in {path})', flush=True)
    fatal = [finding for finding in findings if finding.fatal]
    if not fatal:
        return
    sentences = [' '.join(finding.sentence().split()) for finding in fatal[:SHOWN]]
    more = f'; and {len(fatal) - SHOWN} other problems' if len(fatal) > SHOWN else ''
    raise DiagnosableError(
        f'the data cannot be used as they are: {"; ".join(sentences)}{more}; everything is listed in {path}, and '
        '--no-data-check leaves this check out'
    )


def _paragraph(finding: Finding) -> str:
    """Return a finding with all its records, each in a line."""
    kind = 'stops' if finding.fatal else 'harmless'
    lines = [f'{kind}: {finding.source}: {finding.what}', f'  {finding.fix}' if finding.fix else '']
    return '\n'.join([line for line in lines if line] + [f'  - {record}' for record in finding.records])
