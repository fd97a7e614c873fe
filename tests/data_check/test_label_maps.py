"""Every value of a label map against what mmseg's own loader makes of it; types and sizes of label maps."""

import cv2
import numpy as np
import pytest
from PIL import Image

from convnext_dense.data_check.images import image_facts
from convnext_dense.data_check.label_maps import LabelRules, check_label_maps

NAMES = tuple('abcdefghij')


def rules(count: int, **changes) -> LabelRules:
    settings = dict(
        classes=NAMES[:count],
        ignore_index=255,
        reduce_zero_label=False,
        label_map=None,
        decoder='pillow',
        obeys_orientation=True,
        key='train_dataloader.dataset',
    )
    return LabelRules(**settings | changes)


@pytest.fixture
def pair(tmp_path):
    """Write an image and its label map; gives their paths."""

    def write(labels: np.ndarray, size=None) -> tuple[str, str]:
        image, label_map = tmp_path / 'a.jpg', tmp_path / 'a.png'
        cv2.imwrite(str(image), np.zeros((*(size or labels.shape[:2]), 3), np.uint8))
        cv2.imwrite(str(label_map), labels)
        return str(image), str(label_map)

    return write


@pytest.mark.parametrize('reduce_zero_label', [False, True])
@pytest.mark.parametrize('label_map', [None, {0: 1, 1: 255, 2: 0, 3: 255}], ids=['all classes', 'part of them'])
@pytest.mark.parametrize('decoder', ['pillow', 'cv2'])
def test_every_value(reduce_zero_label, label_map, decoder, pair):
    loading = pytest.importorskip('mmseg.datasets.transforms')
    count = 2 if label_map else 10
    asked = rules(count, reduce_zero_label=reduce_zero_label, label_map=label_map, decoder=decoder)
    paths = pair(np.arange(256, dtype=np.uint8).reshape(16, 16))
    loaded = loading.LoadAnnotations(imdecode_backend=decoder)(
        dict(seg_map_path=paths[1], reduce_zero_label=reduce_zero_label, label_map=label_map, seg_fields=[])
    )['gt_seg_map']
    assert [asked.label_of(value) for value in range(256)] == loaded.ravel().tolist()
    wrong = [value for value in range(256) if loaded.ravel()[value] not in [*range(count), 255]]
    (finding,) = check_label_maps([paths], asked, decode=False)
    assert finding.fatal and finding.records == (f'{paths[1]}, values {wrong[:5]}',)
    right = np.setdiff1d(np.arange(256), wrong).astype(np.uint8)[None]
    assert check_label_maps([pair(right)], asked, decode=False) == []


@pytest.mark.parametrize('largest', range(12))
def test_range(largest, pair):
    findings = check_label_maps([pair(np.full((4, 4), largest, np.uint8))], rules(10), decode=False)
    assert [finding.fatal for finding in findings] == [True] * (largest >= 10)


@pytest.mark.parametrize(
    'labels, size, what',
    [
        (np.zeros((4, 6, 3), np.uint8), None, 'the label map has 3 channels'),
        (np.zeros((4, 6, 4), np.uint8), None, 'the label map has 4 channels'),
        (np.full((4, 6), 256, np.uint16), None, 'values of the label map are no class'),
        (np.zeros((4, 6), np.uint8), (6, 4), 'the label map has another size than its image'),
    ],
)
def test_types_and_sizes(labels, size, what, pair):
    findings = check_label_maps([pair(labels, size)], rules(2), decode=False)
    assert len(findings) == 1 and findings[0].fatal and findings[0].what.startswith(what)


def test_values_that_are_all_ignored(pair):
    paths = pair(np.array([[0, 255]], np.uint8))
    (finding,) = check_label_maps([paths], rules(2), decode=False)
    assert "255 is ignored: 'b' is never seen" in finding.what
    (finding,) = check_label_maps([paths], rules(2, reduce_zero_label=True), decode=False)
    assert finding.what == 'the only values of the label maps are [0, 255], which are all ignored'


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('suffix', ['jpg', 'png'])
def test_orientation_is_that_of_opencv(orientation, suffix, tmp_path):
    path = tmp_path / f'a.{suffix}'
    image = Image.new('RGB', (30, 20))
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(path, exif=exif)
    turned = cv2.imread(str(path), cv2.IMREAD_COLOR).shape[:2]
    stored = cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION).shape[:2]
    facts = image_facts(str(path))
    assert facts.loaded_size(obeys_orientation=True) == turned
    assert facts.loaded_size(obeys_orientation=False) == stored == (20, 30)


@pytest.mark.parametrize('suffix', ['jpg', 'png'])
def test_damaged_images(suffix, tmp_path):
    """Files that are cut off are found without decoding all; damage inside only with it."""
    path = tmp_path / f'a.{suffix}'
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    cv2.imwrite(str(path), pixels)
    content = path.read_bytes()
    for length in range(0, len(content) - 1, len(content) // 7):
        path.write_bytes(content[:length])
        assert image_facts(str(path)).problem, length
    path.write_bytes(content + b'appended')  # as some cameras do
    assert image_facts(str(path)) == (64, 64, 1, '')
    if suffix == 'png':
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes(64) + content[middle + 64 :])
        assert image_facts(str(path)).problem == ''
        assert image_facts(str(path), decode=True).problem
