"""Near-duplicates between splits, by a hash of what an image shows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from convnext_dense.dataset.records import LabelledImage

HASH_SIDE = 16  # a hash has 16 x 16 bits
MAX_DIFFERENT_BITS = 12  # of two images that count as one: another size or quality of a JPEG changes fewer
BLOCK = 4096  # images that are compared at once


def difference_hash(image: LabelledImage) -> np.ndarray:
    """Return whether each pixel of the image, reduced to 16 x 17 grey pixels, is lighter than its left neighbour.

    The difference hash of N. Krawetz, "Kind of Like That", hackerfactor.com, 2013, with 256 bits instead of 64.

    Returns:
        (256,) float32 of 1 and -1.
    """
    with Image.open(image.path) as opened:
        opened.draft('L', (4 * HASH_SIDE, 4 * HASH_SIDE))  # JPEGs are decoded at a fraction of their size
        grey = np.asarray(opened.convert('L').resize((HASH_SIDE + 1, HASH_SIDE), Image.Resampling.BOX), np.int16)
    return np.where(grey[:, 1:] > grey[:, :-1], np.float32(1), np.float32(-1)).ravel()


def near_duplicates(
    first: Sequence[LabelledImage], second: Sequence[LabelledImage]
) -> list[tuple[LabelledImage, LabelledImage]]:
    """Return the pairs of an image of ``first`` and one of ``second`` that show nearly the same."""
    if not first or not second:
        return []
    hashes = np.stack([difference_hash(image) for image in first])
    pairs = []
    for begin in range(0, len(second), BLOCK):
        block = second[begin : begin + BLOCK]
        # Bits of 1 and -1: the product of two hashes is equal bits minus different bits.
        products = hashes @ np.stack([difference_hash(image) for image in block]).T
        for i, k in np.argwhere(products >= HASH_SIDE**2 - 2 * MAX_DIFFERENT_BITS).tolist():
            pairs.append((first[i], block[k]))
    return pairs
