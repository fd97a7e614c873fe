"""Results: COCO annotations, label maps, pictures; reading and resizing of images."""

import json
import os
import signal
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from convnext_dense import UserError, images
from convnext_dense.results import Detections, LabelMap, PredictionFolder, encode_rle, write_predictions


def two_detections(masks=True):
    mask = np.zeros((2, 6, 8), bool)
    mask[0, 1:4, 2:5] = True
    mask[1, 0, 0] = True
    return Detections(
        boxes=np.float32([[2, 1, 5, 4], [0, 0, 1.5, 1.25]]),
        scores=np.float32([0.9, 0.2]),
        labels=np.int64([1, 0]),
        names=['cat', 'dog'],
        size=(6, 8),
        masks=mask if masks else None,
        palette=[(255, 0, 0), (0, 0, 255)],
    )


def test_coco_annotations():
    with_masks = two_detections().coco_annotations(image_id=3, first_id=7)
    assert with_masks[0] == dict(
        id=7,
        image_id=3,
        category_id=2,
        bbox=[2.0, 1.0, 3.0, 3.0],
        area=9,
        score=0.9,
        iscrowd=0,
        segmentation=dict(size=[6, 8], counts='=33000a0'),
    )
    without = two_detections(masks=False).coco_annotations(image_id=1)
    assert [(one['id'], one['bbox'], one['area']) for one in without] == [
        (1, [2.0, 1.0, 3.0, 3.0], 9.0),
        (2, [0.0, 0.0, 1.5, 1.25], 1.88),
    ]
    assert 'segmentation' not in without[0]


@pytest.mark.parametrize('share', [0.0, 0.02, 0.5, 1.0])
def test_rle_equals_pycocotools(share):
    coco_mask = pytest.importorskip('pycocotools.mask')
    generator = np.random.default_rng(0)
    for size in [(1, 1), (7, 5), (113, 240)]:
        mask = generator.random(size) < share
        expected = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert encode_rle(mask) == dict(size=list(size), counts=expected['counts'].decode())


def test_long_runs_equal_pycocotools():
    coco_mask = pytest.importorskip('pycocotools.mask')
    mask = np.zeros((400, 300), bool)
    mask[100:300, 50:200] = True
    mask[5, 299] = True
    expected = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert encode_rle(mask)['counts'] == expected['counts'].decode()


def test_detections_of_supervision():
    supervision = pytest.importorskip('supervision')
    found = two_detections()
    converted = found.to_supervision()
    assert isinstance(converted, supervision.Detections) and len(converted) == 2
    assert converted.xyxy.tolist() == found.boxes.tolist() and converted.class_id.tolist() == found.labels.tolist()
    assert converted.confidence == pytest.approx(found.scores)
    assert list(converted.data['class_name']) == [found.names[label] for label in found.labels]
    assert len(found.above(1.1).to_supervision()) == 0


def test_picture_of_detections():
    picture = two_detections().draw(np.zeros((60, 80, 3), np.uint8)[:6, :8].copy())
    assert picture.shape == (6, 8, 3) and picture.dtype == np.uint8
    large = Detections(np.float32([[20, 30, 50, 55]]), np.ones(1), np.zeros(1, int), ['cat'], (60, 80))
    large.palette = [(10, 200, 30)]
    drawn = large.draw(np.zeros((60, 80, 3), np.uint8))
    assert drawn[54, 40].tolist() == drawn[40, 20].tolist() == [10, 200, 30]
    assert not drawn[:20].any() and not drawn[:, :19].any()
    # The name alone, and nothing but the box: its inside stays black.
    name = large.draw(np.zeros((60, 80, 3), np.uint8), with_scores=False)
    assert name[32:40, 22:48].any() and (name != drawn).any()
    box = large.draw(np.zeros((60, 80, 3), np.uint8), with_names=False, with_scores=False)
    assert not box[32:54, 22:49].any() and box[40, 20].tolist() == [10, 200, 30]


def test_label_map():
    few = LabelMap(np.int64([[0, 1], [2, 2]]), ['a', 'b', 'c'], [(0, 0, 0), (100, 0, 0), (0, 0, 200)])
    assert few.as_png_array().dtype == np.uint8 and few.size == (2, 2)
    assert few.draw(np.zeros((2, 2, 3), np.uint8)).tolist() == [[[0, 0, 0], [50, 0, 0]], [[0, 0, 100], [0, 0, 100]]]
    assert LabelMap(few.labels, ['x'] * 255).as_png_array().dtype == np.uint8
    assert LabelMap(few.labels, ['x'] * 256).as_png_array().dtype == np.uint16
    with pytest.raises(UserError, match='found 70000 classes'):
        LabelMap(few.labels, ['x'] * 70000).as_png_array()


@pytest.mark.parametrize('library', ['OpenCV', 'Pillow'])
def test_folder(library, tmp_path, monkeypatch):
    if library == 'Pillow':
        pytest.importorskip('PIL')
        monkeypatch.setattr(images, 'opencv', lambda: None)
        monkeypatch.setattr('convnext_dense.results.opencv', lambda: None)
    folder = PredictionFolder(tmp_path / 'out', score_threshold=0.3)
    folder.check_usable()
    folder.add('sub/one.jpg', np.zeros((6, 8, 3), np.uint8), two_detections())
    folder.add('two.jpg', np.zeros((6, 8, 3), np.uint8), two_detections().above(1.0))
    folder.finish()
    written = json.loads((tmp_path / 'out/predictions.json').read_text())
    assert written['images'] == [
        dict(id=1, file_name='sub/one.jpg', height=6, width=8),
        dict(id=2, file_name='two.jpg', height=6, width=8),
    ]
    assert [(one['id'], one['image_id'], one['score']) for one in written['annotations']] == [(1, 1, 0.9)]
    assert written['categories'] == [dict(id=1, name='cat'), dict(id=2, name='dog')]
    assert (tmp_path / 'out/pictures/sub/one.png').exists()
    with pytest.raises(UserError, match='is not empty: give a new folder'):
        folder.check_usable()

    labels = PredictionFolder(tmp_path / 'labels')
    labels.add('a.jpg', np.zeros((1, 2, 3), np.uint8), LabelMap(np.int64([[3, 299]]), ['x'] * 300))
    labels.finish()
    assert cv2.imread(str(tmp_path / 'labels/labels/a.png'), cv2.IMREAD_UNCHANGED).tolist() == [[3, 299]]
    assert not (tmp_path / 'labels/predictions.json').exists()


def test_what_is_done_is_written_when_the_program_is_stopped(tmp_path):
    def predict(path):
        if path.name == 'c.jpg':
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        return np.zeros((6, 8, 3), np.uint8), two_detections()

    before = signal.getsignal(signal.SIGTERM)
    files = [(name, Path(name)) for name in ('a.jpg', 'b.jpg', 'c.jpg', 'd.jpg')]
    with pytest.raises(SystemExit) as stopped:
        write_predictions(files, PredictionFolder(tmp_path / 'out'), predict)
    assert stopped.value.code == 128 + 15 and signal.getsignal(signal.SIGTERM) is before
    written = json.loads((tmp_path / 'out/predictions.json').read_text())
    assert [image['file_name'] for image in written['images']] == ['a.jpg', 'b.jpg']


def test_a_full_disk_is_an_error_of_the_folder(tmp_path):
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out/pictures').touch()  # where a folder has to be
    files = [('a.jpg', Path('a.jpg'))]
    with pytest.raises(UserError, match=r'out cannot be written \(.*\): give a place that you may write'):
        write_predictions(
            files, PredictionFolder(tmp_path / 'out'), lambda _: (np.zeros((6, 8, 3), np.uint8), two_detections())
        )


def test_find_images(tmp_path):
    (tmp_path / 'a/sub.png').mkdir(parents=True)
    (tmp_path / 'a/sub.png/x.JPG').touch()
    (tmp_path / 'a/notes.txt').touch()
    (tmp_path / 'link.jpg').symlink_to('gone.jpg')
    found = images.find_images([tmp_path / 'a', tmp_path / 'link.jpg'])
    assert found == {'sub.png/x.JPG': tmp_path / 'a/sub.png/x.JPG', 'link.jpg': tmp_path / 'link.jpg'}


@pytest.mark.parametrize('library', ['OpenCV', 'Pillow'])
def test_images_are_read_as_mmcv_reads_them(library, tmp_path, monkeypatch):
    mmcv = pytest.importorskip('mmcv')
    if library == 'Pillow':
        pytest.importorskip('PIL')
        monkeypatch.setattr(images, 'opencv', lambda: None)
    generator = np.random.default_rng(0)
    cv2.imwrite(str(tmp_path / 'grey16.png'), generator.integers(0, 2**16, (5, 7), np.uint16))
    cv2.imwrite(str(tmp_path / 'alpha.png'), generator.integers(0, 256, (5, 7, 4), np.uint8))
    cv2.imwrite(str(tmp_path / 'colour.png'), generator.integers(0, 256, (5, 7, 3), np.uint8))
    for path in sorted(tmp_path.iterdir()):
        np.testing.assert_array_equal(images.read_image(path), mmcv.imread(str(path), channel_order='rgb'))
    (tmp_path / 'broken.jpg').write_bytes(b'not an image')
    (tmp_path / 'empty.jpg').write_bytes(b'')
    for name, reason in (('broken', 'as an image'), ('empty', 'as an image'), ('gone', r'\(No such file')):
        with pytest.raises(UserError, match=f'{name}.jpg could not be read {reason}'):
            images.read_image(tmp_path / f'{name}.jpg')


def test_resize_without_opencv(monkeypatch):
    image = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8), (5, 5), 0)
    expected = images.resize_image(image, (71, 20))
    monkeypatch.setattr(images, 'opencv', lambda: None)
    found = images.resize_image(image, (71, 20))
    assert np.abs(found.astype(int) - expected).max() <= 1


@pytest.mark.parametrize('align_corners', [False, True])
@pytest.mark.parametrize('size', [(13, 40), (5, 7), (3, 1), (31, 8)])
def test_resize_bilinear_equals_torch(size, align_corners):
    torch = pytest.importorskip('torch')
    planes = np.random.default_rng(0).random((2, 5, 7)).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(planes)[None], size, mode='bilinear', align_corners=align_corners
    )[0]
    found = images.resize_bilinear(planes, size, align_corners)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)
