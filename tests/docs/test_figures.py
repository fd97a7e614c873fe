"""Measured figures in sentences are those of the files in docs/benchmarks; tables are written by tools/dev."""

import json
import re
from functools import cache

import pytest
from helpers import ROOT

# A sentence of a page as a format string, and where each value of it is.
SENTENCES = [
    (
        'reference/benchmarks.md',
        'it is {0:.1f} (T) and {1:.1f} times (B) as fast. A step of T is {2:.0f} GFLOP.',
        [
            ('cpu_tiny_train', 'mmpretrain', 'fp32', 'ratio_min_fp32'),
            ('cpu_base_train', 'mmpretrain', 'fp32', 'ratio_min_fp32'),
            ('cpu_tiny_train', 'gflop'),
        ],
    ),
    (
        'reference/benchmarks.md',
        'time grows with pixels to the power of {0:.2f} and with the batch to the power of {1:.1f}.',
        [
            ('cpu_tiny_scaling', 'exponents', 'ours fp32', 'min against pixels'),
            ('cpu_tiny_scaling', 'exponents', 'ours fp32', 'min against batch'),
        ],
    ),
    (
        'reference/benchmarks.md',
        'timm takes {0:.1f} times our time in bf16 training, and {1:.1f} (T) and {2:.1f} times (B) in fp32 training.',
        [
            ('cpu_tiny_train', 'timm', 'bf16', 'ratio_min_bf16'),
            ('cpu_tiny_train', 'timm', 'fp32', 'ratio_min_fp32'),
            ('cpu_base_train', 'timm', 'fp32', 'ratio_min_fp32'),
        ],
    ),
    (
        'reference/benchmarks.md',
        'A lean step takes {0:.2f} (bf16) and {1:.2f} times (fp32) the time of a default one.',
        [
            ('cpu_tiny_train', 'ours lean', 'bf16', 'ratio_min_bf16'),
            ('cpu_tiny_train', 'ours lean', 'fp32', 'ratio_min_fp32'),
        ],
    ),
    (
        'reference/benchmarks.md',
        'timm under `torch.compile` takes {0:.2f} times our uncompiled time (T, inference, fp32).',
        [('cpu_tiny_compile', 'timm channels_last compiled', 'fp32', 'ratio_min_fp32')],
    ),
    (
        'guides/faults_and_resume.md',
        'take {0:.1f} % of a step of a small Mask R-CNN on a CPU, less than steps differ: with them the median step '
        'took {1:.2f} times',
        [('protection', 'percent_of_a_step'), ('protection', 'ratio_of_medians')],
    ),
    (
        'guides/weights.md',
        'through `init_cfg`, with the check of its CRC-32, takes {0:.2f} times the time and {1:.2f} times the peak '
        'memory of bare `torch.load` and `load_state_dict`; through `load_state_dict` it takes {2:.2f} and '
        '{3:.2f} times.',
        [
            ('loading_xlarge', 'ratio', 'pretrained', 'seconds'),
            ('loading_xlarge', 'ratio', 'pretrained', 'peak_mib'),
            ('loading_xlarge', 'ratio', 'load_state_dict', 'seconds'),
            ('loading_xlarge', 'ratio', 'load_state_dict', 'peak_mib'),
        ],
    ),
]


@cache
def measured(name: str) -> dict:
    return json.loads((ROOT / 'docs/benchmarks' / f'{name}.json').read_text())


def value_of(name: str, *keys: str) -> float:
    """A value of a file; the first two keys of a measured row are its name and type."""
    found = measured(name)
    if len(keys) == 3 and 'rows' in found:
        row, dtype, keys = keys[0], keys[1], keys[2:]
        (found,) = [one for one in found['rows'] if (one['name'], one['dtype']) == (row, dtype)]
    for key in keys:
        found = found[key]
    return found


@pytest.mark.parametrize('page, sentence, places', SENTENCES, ids=lambda value: str(value)[:40])
def test_sentence(page, sentence, places):
    text = re.sub(r'\s+', ' ', (ROOT / 'docs' / page).read_text())
    assert sentence.format(*(value_of(*place) for place in places)) in text


def test_optimizer():
    rows = {row['name']: row['min'] * 1000 for row in measured('cpu_tiny_optimizer')['rows']}
    text = re.sub(r'\s+', ' ', (ROOT / 'docs/reference/benchmarks.md').read_text())
    assert (
        f'takes {rows["merged groups, fused"]:.0f} ms with merged groups and the fused kernel, and '
        f'{rows["a group a tensor, default"]:.0f} ms with one group per tensor and plain AdamW.' in text
    )


def test_data_check():
    """The limits of the check are 3 minutes and 4 GiB for data of COCO's size, without decoding."""
    runs = measured('data_check')
    coco = [run for run in runs['headers'] if (run['images'], run['annotations']) == (118_000, 860_000)]
    part = [run for run in runs['headers'] if run['images'] == 10_000]
    seconds, decoded = ([run['seconds'] for run in found] for found in (coco, runs['decoded']))
    memory = max(run['peak_megabytes'] for run in coco)
    assert max(seconds) < 180 and memory < 4096
    text = re.sub(r'\s+', ' ', (ROOT / 'docs/guides/own_data.md').read_text())
    assert (
        f'118,000 images with 860,000 objects took {min(seconds):.0f} s in the fastest run, {max(seconds):.0f} s in '
        f'the slowest, and {memory / 1000:.1f} GB. 10,000 images of 640 x 480 took {part[0]["seconds"]:.0f} s, and '
        f'{min(decoded):.0f} s with `--decode` (the fastest of three runs' in text
    )
