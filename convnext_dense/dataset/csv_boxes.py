"""A table of boxes: ``image,xmin,ymin,xmax,ymax,label``, a box per row, as spreadsheets and deepforest write it."""

from __future__ import annotations

import csv
import math
from pathlib import Path

from convnext_dense.dataset.coco import split_of
from convnext_dense.dataset.records import UNSPLIT, LabelledData, LabelledImage, Object, check_classes, image_size
from convnext_dense.errors import UserError

COLUMNS = ('image', 'xmin', 'ymin', 'xmax', 'ymax', 'label')
# Other names of the columns image and label.
SYNONYMS = {'image_path': 'image', 'filename': 'image', 'file_name': 'image', 'class': 'label', 'name': 'label'}


def read_csv(source: Path, images: Path | None = None) -> LabelledData:
    """Read a table of boxes; a row with an image and nothing else is an image without objects.

    Args:
        source: A CSV file, or a folder with one file per split.
        images: The folder that the names of images begin at; by default that of the table.

    Raises:
        UserError: There is no such table, or a row cannot be used; names the row.
    """
    files = [source] if source.is_file() else [file for file in sorted(source.glob('*.csv')) if is_table(file)]
    if not files:
        raise UserError(f'{source} holds no CSV file with the columns {",".join(COLUMNS)}: check the path')
    tables = {file: _read_rows(file) for file in files}
    names = {row['label'] for rows in tables.values() for row in rows.values() if row['label']}
    data = LabelledData('detection', check_classes(sorted(names), source), {})
    label_of = {name: label for label, name in enumerate(data.classes)}
    for file, rows in tables.items():
        found: dict[str, LabelledImage] = {}
        for number, row in rows.items():
            name = row['image'].replace('\\', '/')
            if name not in found:
                path = (images or file.parent) / name
                found[name] = LabelledImage(path, name, image_size(path))
            if row['label'] or row['xmin']:
                found[name].objects.append(_object(file, number, row, label_of))
        split = split_of(Path(file.name)) if len(files) > 1 else UNSPLIT
        if split in data.splits:
            raise UserError(f'{file} and another table are both of the split {split!r}: give one of them')
        data.splits[split] = list(found.values())
    return data


def is_table(file: Path) -> bool:
    """Return whether a file is a CSV file with our columns."""
    if file.suffix.lower() != '.csv':
        return False
    with file.open(newline='', encoding='utf-8-sig') as stream:
        return set(COLUMNS) <= set(_known_names(next(csv.reader(stream), [])))


def _known_names(header: list[str]) -> list[str]:
    names = [name.strip().lower() for name in header]
    return [SYNONYMS.get(name, name) if SYNONYMS.get(name) not in names else name for name in names]


def _read_rows(file: Path) -> dict[int, dict[str, str]]:
    """Return the rows of a table by their line numbers."""
    with file.open(newline='', encoding='utf-8-sig') as stream:
        reader = csv.reader(stream)
        header = _known_names(next(reader, []))
        if missing := set(COLUMNS) - set(header):
            raise UserError(f'{file} has no column {", ".join(sorted(missing))}: name them {",".join(COLUMNS)}')
        rows = {}
        for values in reader:
            if any(values):
                padded = [*values, *[''] * (len(header) - len(values))]
                rows[reader.line_num] = {name: value.strip() for name, value in zip(header, padded)}
    return rows


def _object(file: Path, number: int, row: dict[str, str], label_of: dict[str, int]) -> Object:
    try:
        x0, y0, x1, y1 = (float(row[name]) for name in COLUMNS[1:5])
        if not (all(map(math.isfinite, (x0, y0, x1, y1))) and x0 < x1 and y0 < y1 and row['label']):
            raise ValueError
    except ValueError:
        raise UserError(
            f'{file}, line {number}: {",".join(row[name] for name in COLUMNS)} is not a box; wanted numbers with '
            'xmin < xmax and ymin < ymax, and a label'
        ) from None
    return Object(label_of[row['label']], (x0, y0, x1, y1))
