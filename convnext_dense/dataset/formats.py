"""Find the format of labels, read them, and write a data set in another layout."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from convnext_dense.dataset.coco import read_coco, write_coco
from convnext_dense.dataset.csv_boxes import is_table, read_csv
from convnext_dense.dataset.label_maps import ADE_FOLDER, find_folders, read_label_maps, write_ade
from convnext_dense.dataset.labelme import is_labelme, read_labelme
from convnext_dense.dataset.records import UNSPLIT, LabelledData, check_new_folder
from convnext_dense.dataset.split import all_images, split_images, with_splits
from convnext_dense.dataset.voc import read_voc
from convnext_dense.dataset.yolo import is_yolo, read_yolo, write_yolo
from convnext_dense.errors import UserError

FORMATS = ('coco', 'yolo', 'voc', 'labelme', 'csv', 'labels')
TARGETS = ('coco', 'ade', 'yolo')


def read_labels(
    source: Path, file_format: str | None = None, images: Path | None = None, classes: Sequence[str] = ()
) -> LabelledData:
    """Read labelled images.

    Args:
        source: Their folder, or the file that names them.
        file_format: One of :data:`FORMATS`; None to find out.
        images: The folder of the images, where it cannot be found from the labels.
        classes: Names of the indices in label maps, if no ``classes.txt`` holds them.

    Raises:
        UserError: Nothing can be read, or not completely; says which file and why.
    """
    if not source.exists():
        raise UserError(f'there is no file or folder {source}: check the path')
    file_format = file_format or find_format(source)
    if file_format == 'yolo':
        return read_yolo(source)
    if file_format == 'labels':
        return read_label_maps(source, classes)
    readers = dict(coco=read_coco, voc=read_voc, labelme=read_labelme, csv=read_csv)
    return readers[file_format](source, images)


def find_format(source: Path) -> str:
    """Return the format of the labels in a file or folder.

    Raises:
        UserError: There are labels of no format, or of several.
    """
    found = []
    if is_yolo(source):
        found.append('yolo')
    json_files = [source] if source.suffix == '.json' else source.rglob('*.json')
    for file in json_files:
        try:
            content = json.loads(file.read_text(encoding='utf-8'))
        except ValueError as error:
            raise UserError(f'{file} is not valid JSON ({error}): write the file again') from error
        if is_labelme(content):
            found.append('labelme')
        elif isinstance(content, dict) and 'images' in content and 'categories' in content:
            found.append('coco')
        else:
            continue
        break  # the other files are of the same kind
    if next(source.rglob('*.xml'), None):
        found.append('voc')
    if any(map(is_table, [source] if source.is_file() else source.glob('*.csv'))):
        found.append('csv')
    if not found and source.is_dir() and _has_label_maps(source):
        found.append('labels')
    if len(found) != 1:
        what = f'labels of several formats ({", ".join(found)})' if found else 'no labels of a known format'
        raise UserError(f'{source} holds {what}: give --format {"|".join(found or FORMATS)}')
    return found[0]


def _has_label_maps(source: Path) -> bool:
    try:
        find_folders(source)
    except UserError:
        return False
    return True


def convert(
    data: LabelledData,
    out: Path,
    target: str | None = None,
    *,
    copy: bool = False,
    val: float = 0.2,
    test: float = 0.0,
    seed: int = 0,
    group: str | None = None,
    split_again: bool = False,
) -> LabelledData:
    """Write a data set in the layout of COCO, ADE20K or YOLO; data without 'train' and 'val' are split.

    Args:
        data: From :func:`read_labels`.
        out: A new folder; COCO's layout goes into OUT/coco, ADE20K's into OUT/ade/ADEChallengeData2016.
        target: One of :data:`TARGETS`; None is 'coco' for objects and 'ade' for label maps.
        copy: Copy the images instead of linking to them.
        val, test, seed, group: As of :func:`convnext_dense.dataset.split.split_images`.
        split_again: Split data that have splits, too.

    Returns:
        What was written, with all losses.

    Raises:
        UserError: The folder is in use, or the data cannot be written or split so.
    """
    check_new_folder(out)
    target = target or ('coco' if data.kind == 'detection' else 'ade')
    if data.kind == 'segmentation' and target != 'ade':
        raise UserError(f'label maps do not separate objects, which {target} is made of: write --to ade')
    if split_again or not {'train', 'val'} <= set(data.splits):
        kept = {} if split_again else {split: data.splits[split] for split in ('test',) if split in data.splits}
        rest = with_splits(data, {split: images for split, images in data.splits.items() if split not in kept})
        data = with_splits(data, split_images(all_images(rest), val, test, seed, group) | kept)
    data.splits.pop(UNSPLIT, None)
    out.parent.mkdir(parents=True, exist_ok=True)
    # Complete or not there at all.
    unfinished = Path(tempfile.mkdtemp(prefix=f'.{out.name}-', dir=out.parent))
    unfinished.chmod(0o755)
    try:
        if target == 'coco':
            write_coco(data, unfinished / 'coco', copy)
        elif target == 'ade':
            write_ade(data, unfinished / ADE_FOLDER, copy)
        else:
            write_yolo(data, unfinished, copy, place=out)
        if out.exists():
            out.rmdir()
        unfinished.rename(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return data
