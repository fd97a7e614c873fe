"""Divide images between training, validation and test, by image or by group."""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Sequence

from convnext_dense.dataset.records import SPLITS, UNSPLIT, LabelledData, LabelledImage
from convnext_dense.errors import UserError

BY_FOLDER = 'folder'


def split_images(
    images: Sequence[LabelledImage], val: float, test: float = 0.0, seed: int = 0, group: str | None = None
) -> dict[str, list[LabelledImage]]:
    """Divide images at random; images of one group stay together.

    Groups are drawn in a random order, and each goes to the split that lacks most of its share.

    Args:
        images: Of the whole data set.
        val, test: Shares of the images, 0 to 1; what remains is for training. The test split is left out if it is 0.
        seed: Decides the order; the same images and seed give the same splits.
        group: None for each image alone, 'folder' for its folder, or a regular expression whose first group, or whole
            match, in the name of the image names its group.

    Returns:
        The images of 'train', 'val' and, if ``test`` is not 0, 'test', in the order given.

    Raises:
        UserError: The shares leave nothing for training, or there are fewer groups than splits.
    """
    if not (0 < val < 1 and 0 <= test < 1 and val + test < 1):
        raise UserError(f'a share of {val} for val and {test} for test leaves nothing for training: give less than 1')
    shares = {split: share for split, share in zip(SPLITS, (1 - val - test, val, test)) if share}
    groups: dict[str, list[int]] = defaultdict(list)
    for i, image in enumerate(images):
        groups[_group_of(image, group)].append(i)
    if len(groups) < len(shares):
        raise UserError(
            f'{len(images)} images in {len(groups)} groups cannot be divided into {", ".join(shares)}: '
            'give another --group, or more images'
        )
    members: dict[str, list[int]] = {split: [] for split in shares}
    order = sorted(groups)
    random.Random(seed).shuffle(order)
    for place, key in enumerate(order):
        empty = [split for split in shares if not members[split]]
        # The last groups go to splits that have none.
        candidates = empty if len(order) - place <= len(empty) else list(shares)
        lacking = {split: shares[split] * len(images) - len(members[split]) for split in candidates}
        members[max(candidates, key=lacking.__getitem__)] += groups[key]
    return {split: [images[i] for i in sorted(indices)] for split, indices in members.items()}


def _group_of(image: LabelledImage, group: str | None) -> str:
    if group is None:
        return image.name
    if group == BY_FOLDER:
        return image.name.rpartition('/')[0]
    try:
        found = re.search(group, image.name)
    except re.error as error:
        raise UserError(
            f'--group {group!r} is not a regular expression ({error}): correct it, or give folder'
        ) from error
    if found is None:
        raise UserError(f'--group {group!r} matches nothing in the name {image.name}: correct it')
    return found[1] if found.re.groups else found[0]


def with_splits(data: LabelledData, splits: dict[str, list[LabelledImage]]) -> LabelledData:
    """Return the data set with other splits."""
    return LabelledData(data.kind, data.classes, splits, data.losses)


def all_images(data: LabelledData) -> list[LabelledImage]:
    """Return all images with names that are unique: where splits share a name, the split goes before it."""
    counts: dict[str, int] = defaultdict(int)
    for image in data.images:
        counts[image.name] += 1
    images = []
    for split, members in data.splits.items():
        for image in members:
            if counts[image.name] > 1 and split != UNSPLIT:
                image.name = f'{split}/{image.name}'
            images.append(image)
    return images
