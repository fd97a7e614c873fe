"""What an exported file says about itself, as JSON under one key of its metadata.

format            1
task              'detection' or 'segmentation'
names, palette    of the classes; the palette may be empty
resize            {'scale': [long, short], 'keep_ratio': true} of the test pipeline, or null
size              [height, width] of a file with a fixed size, or null
mean, std         of the normalisation inside the graph, R, G, B, 0 to 255
score_threshold   inside the graph, of detectors
mask_threshold    of the probabilities of masks, for the runner
mode              'whole' or 'slide', of segmentors; 'slide' has crop_size and stride, each [height, width]
align_corners     of the last resize of logits
binary_threshold  of a segmentor with one logit, or null
licence           of the weights, where it is known
versions          of the packages that wrote the file
"""

from __future__ import annotations

import json
from typing import Any

from convnext_dense.errors import UserError

KEY = 'convnext_dense'
FORMAT = 1


def parse(text: str | None, path: object) -> dict[str, Any]:
    """Return the metadata of a file.

    Raises:
        UserError: It has none, or of another version of this package.
    """
    if not text:
        raise UserError(
            f'{path} has no metadata of convnext_dense, only whole models written by tools/export.py have: export one'
        )
    metadata: dict[str, Any] = json.loads(text)
    if metadata.get('format') != FORMAT:
        raise UserError(
            f'{path} has metadata of format {metadata.get("format")}, {FORMAT} was wanted: use the version of '
            'convnext_dense that wrote it'
        )
    return metadata
