"""What ``tools/dataset.py`` does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from convnext_dense.data_check.check import check_data, follow_names
from convnext_dense.dataset.formats import convert, read_labels
from convnext_dense.errors import UserError
from convnext_dense.run.inspect_data import inspect_data, summary_lines, write_page
from convnext_dense.run.new_config.data import read_facts
from convnext_dense.run.new_config.write import default_config

CHECKED = ('train', 'val')  # splits


def inspect(
    data: Path,
    *,
    file_format: str | None = None,
    images: Path | None = None,
    classes: Sequence[str] = (),
    out: Path | None = None,
) -> None:
    """Print what is in a data set, and write a page with samples drawn.

    Args:
        data, file_format, images, classes: As of :func:`convnext_dense.dataset.formats.read_labels`.
        out: The HTML page; None writes none.

    Raises:
        UserError: The data cannot be read.
    """
    labelled = read_labels(data, file_format, images, classes)
    summary = inspect_data(labelled)
    findings = _findings(data)
    print(*summary_lines(labelled, summary), *findings, sep='\n')
    if out:
        write_page(labelled, summary, findings, out)
        print(f'\nwritten to {out}')


def _findings(data: Path) -> list[str]:
    """Return what the check that runs before a training finds in data of our layout."""
    try:
        facts = read_facts(data)
    except UserError as error:
        return [f'not checked as a training does it: {error}']
    cfg = default_config(facts)
    follow_names(cfg, CHECKED)
    return [finding.sentence() for finding in check_data(cfg, CHECKED)] or ['data check: nothing found']


def convert_data(
    data: Path,
    out: Path,
    *,
    file_format: str | None = None,
    images: Path | None = None,
    classes: Sequence[str] = (),
    target: str | None = None,
    copy: bool = False,
    val: float = 0.2,
    test: float = 0.0,
    seed: int = 0,
    group: str | None = None,
    split_again: bool = False,
) -> None:
    """Write a data set in another layout, and print what was written and what could not be.

    Args:
        data, file_format, images, classes: As of :func:`convnext_dense.dataset.formats.read_labels`.
        out, target, copy, val, test, seed, group, split_again: As of :func:`convnext_dense.dataset.formats.convert`.

    Raises:
        UserError: The data cannot be read or written.
    """
    labelled = read_labels(data, file_format, images, classes)
    written = convert(
        labelled, out, target, copy=copy, val=val, test=test, seed=seed, group=group, split_again=split_again
    )
    counted = ', '.join(f'{len(images)} images for {split}' for split, images in written.splits.items())
    print(f'{out}: {counted}; classes: {", ".join(written.classes)}')
    for loss, count in written.losses.items():
        print(f'note: {count} {loss}')
