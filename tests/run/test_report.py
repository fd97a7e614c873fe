"""The page of a training: its measures, its parts, and how a browser shows it."""

import html
import json
import pickle
import re
import shutil
import subprocess

import numpy as np
import pytest
from new_config_data import write_label_maps, write_objects
from PIL import Image

from convnext_dense.dataset.formats import read_labels
from convnext_dense.errors import UserError
from convnext_dense.run.html_page import HtmlPage
from convnext_dense.run.inspect_data import inspect_data, summary_lines, write_page
from convnext_dense.run.new_config.write import new_config
from convnext_dense.run.report import detection, segmentation
from convnext_dense.run.report.page import write_report
from convnext_dense.run.report.work_dir import read_run
from convnext_dense.run.train_test import train

pytest.importorskip('mmdet')
IN_PROCESS = tuple(
    f'{split}_dataloader.{option}' for split in ('train', 'val', 'test')
    for option in ('num_workers=0', 'persistent_workers=False')
)  # fmt: skip


def coco_file(folder):
    """Two images; a cat in the first, a cat and a dog in the second."""
    content = dict(
        images=[
            dict(id=4, file_name='a.jpg', width=100, height=80),
            dict(id=9, file_name='b.jpg', width=100, height=80),
        ],
        categories=[dict(id=3, name='dog'), dict(id=7, name='cat')],
        annotations=[
            dict(id=1, image_id=4, category_id=7, bbox=[0, 0, 20, 20], area=400, iscrowd=0),
            dict(id=2, image_id=9, category_id=7, bbox=[0, 0, 40, 40], area=1600, iscrowd=0),
            dict(id=3, image_id=9, category_id=3, bbox=[50, 50, 10, 10], area=100, iscrowd=0),
        ],
    )
    (folder / 'truth.json').write_text(json.dumps(content))
    return folder / 'truth.json'


def sample(image_id, boxes, scores, labels):
    found = dict(bboxes=np.float32(boxes).reshape(-1, 4), scores=np.float32(scores), labels=np.array(labels, int))
    return dict(img_id=image_id, img_path=f'{image_id}.jpg', ori_shape=(80, 100), pred_instances=found)


def test_measures_of_a_detector(tmp_path):
    samples = [
        sample(4, [[0, 0, 20, 20], [60, 60, 90, 79]], [0.9, 0.4], [0, 1]),
        sample(9, [[0, 0, 40, 40], [50, 50, 60, 60], [0, 0, 5, 5]], [0.8, 0.7, 0.1], [0, 0, 0]),
    ]
    (tmp_path / 'found.pkl').write_bytes(pickle.dumps(samples))
    results = detection.measure(tmp_path / 'found.pkl', coco_file(tmp_path), ['cat', 'dog'], ['bbox'])
    precision = results.average_precision['bbox']
    assert precision[0].tolist()[:3] == pytest.approx([1.0, 1.0, 1.0]), 'both cats come before the mistakes'
    assert np.isnan(precision[0, 3]) and precision[1, 0] == 0
    # Rows are truth, columns predictions: cat, dog, nothing. The dog was taken for a cat; a dog was seen in nothing.
    assert results.confusion.tolist() == [[2, 0, 0], [1, 0, 0], [0, 1, 0]]
    assert [image.f1 for image in results.images] == pytest.approx([2 / 3, 2 / 4])
    assert results.precision[0] == pytest.approx(1.0) and results.precision.shape == (2, 101)


def test_no_detection(tmp_path):
    (tmp_path / 'found.pkl').write_bytes(pickle.dumps([sample(4, [], [], []), sample(9, [], [], [])]))
    results = detection.measure(tmp_path / 'found.pkl', coco_file(tmp_path), ['cat', 'dog'], ['bbox'])
    assert not results.average_precision['bbox'].any() and results.confusion.tolist() == [
        [0, 0, 2],
        [0, 0, 1],
        [0, 0, 0],
    ]


def test_measures_of_a_segmentor(tmp_path):
    truth = np.uint8([[0, 0, 1, 255], [2, 2, 2, 255]])
    found = np.uint8([[0, 1, 1, 0], [2, 2, 2, 1]])
    Image.fromarray(truth).save(tmp_path / 'truth.png')
    Image.fromarray(found).save(tmp_path / 'a.png')
    entry = dict(img_path='/x/a.jpg', seg_map_path=str(tmp_path / 'truth.png'), reduce_zero_label=False)
    results = segmentation.measure(tmp_path, [entry], ['a', 'b', 'c', 'd'])
    assert results.confusion.tolist() == [[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 3, 0], [0, 0, 0, 0]]
    assert results.iou[:3].tolist() == [0.5, 0.5, 1.0] and np.isnan(results.iou[3])
    assert results.images[0].accuracy == pytest.approx(5 / 6)
    # ADE20K: label 0 is ignored in the truth, and what is written begins at 1.
    Image.fromarray(np.where(truth == 255, 0, truth + 1).astype(np.uint8)).save(tmp_path / 'truth.png')
    Image.fromarray(found + 1).save(tmp_path / 'a.png')
    reduced = segmentation.measure(tmp_path, [dict(entry, reduce_zero_label=True)], ['a', 'b', 'c', 'd'])
    assert reduced.confusion.tolist() == results.confusion.tolist()


def test_page_escapes_and_never_overwrites(tmp_path):
    page = HtmlPage('a <b> & c')
    page.add_table(['x'], [['<script>'], [1234], [0.12345]])
    page.add_picture(np.zeros((10, 2000, 3), np.uint8), '"quoted"')
    page.write(tmp_path / 'page.html')
    text = (tmp_path / 'page.html').read_text()
    assert '<script>' not in text and '&lt;script&gt;' in text and '1,234' in text and '0.1235' in text
    assert 'src="data:image/jpeg;base64,' in text and 'http' not in text
    page.write(tmp_path / 'page.html')
    (tmp_path / 'mine.html').write_text('thesis')
    with pytest.raises(UserError, match='is not a page of ours'):
        page.write(tmp_path / 'mine.html')
    assert (tmp_path / 'mine.html').read_text() == 'thesis'


def test_inspection(tmp_path):
    data = write_objects(tmp_path)
    source = next((data / 'coco/train2017').iterdir()).resolve()
    for target in (data / 'coco/val2017').iterdir():
        target.unlink()
        shutil.copy(source, target)
        break
    labelled = read_labels(data)
    summary = inspect_data(labelled)
    assert summary.images == {'train': 4, 'val': 2} and summary.per_class['train'] == {0: 4, 1: 4}
    assert summary.object_sides.tolist() == [24.0] * 12 and summary.empty == {'train': [], 'val': []}
    lines = '\n'.join(summary_lines(labelled, summary))
    assert 'boxes and outlines of 3 classes on 6 images (4 train, 2 val)' in lines
    assert re.search(r'grüner Kasten +4 +2', lines) and 'val: no objects of never' in lines
    assert "by COCO's sizes 100 % small" in lines and 'near-duplicates between train and val' in lines
    write_page(labelled, summary, ['a finding'], tmp_path / 'page.html')
    text = (tmp_path / 'page.html').read_text()
    assert text.count('<img ') == 6 and 'a finding' in text and 'id="samples-val"' in text


def test_folders_that_hold_no_training(tmp_path):
    with pytest.raises(UserError, match='holds 0 configs'):
        read_run(tmp_path)
    (tmp_path / 'config.py').write_text('')
    with pytest.raises(UserError, match='holds no log of a training'):
        read_run(tmp_path)


PARTS = ('result', 'classes', 'confusion', 'best', 'worst', 'curves', 'settings', 'environment', 'config', 'compare')


@pytest.fixture(scope='module', params=['mask_rcnn', 'upernet'])
def trained(request, tmp_path_factory):
    """A recipe, and the work folder of its training, with the page."""
    recipe = request.param
    folder = tmp_path_factory.mktemp(recipe)
    data = write_label_maps(folder) if recipe == 'upernet' else write_objects(folder)
    new_config(data, recipe=recipe, arch='atto', weights='none', out=folder / 'config.py')
    length = (
        ('train_cfg.max_iters=2', 'train_cfg.val_interval=2') if recipe == 'upernet' else ('train_cfg.max_epochs=1',)
    )
    options = [*length, 'train_cfg.val_interval=1', 'default_hooks.checkpoint.interval=1', *IN_PROCESS]
    work_dir = folder / 'work'
    metrics = train(str(folder / 'config.py'), work_dir=str(work_dir), cfg_options=options)
    assert metrics == json.loads((work_dir / 'metrics.json').read_text())
    write_report(work_dir, compare=work_dir)
    return recipe, work_dir


def parts_of(recipe: str) -> set[str]:
    return {*PARTS, 'precision-recall'} if recipe == 'mask_rcnn' else set(PARTS)


@pytest.mark.slow
def test_page_of_a_training(trained):
    recipe, work_dir = trained
    text = (work_dir / 'report.html').read_text()
    assert set(re.findall(r'<h2 id="([\w-]+)"', text)) == parts_of(recipe)
    assert 'configs/' + recipe in text and 'train_cfg' in text and 'http-equiv' not in text


@pytest.mark.slow
def test_browser_shows_the_page(trained, tmp_path):
    """Every part is on the page, no picture is broken, and the screenshot is not empty."""
    recipe, work_dir = trained
    browser = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
    if browser is None:
        pytest.skip('no Chromium, which opens the page: apt-get install chromium (.ci/run does)')
    # What a browser makes of the page, read by a script that stands behind it: the page itself has none.
    script = """<script>onload = () => { document.title = JSON.stringify({
        parts: [...document.querySelectorAll('h2')].filter(part => part.offsetHeight > 0).map(part => part.id),
        widths: [...document.images].map(image => image.naturalWidth),
        overflow: document.documentElement.scrollWidth - innerWidth}) }</script>"""
    (tmp_path / 'page.html').write_text((work_dir / 'report.html').read_text() + script)
    command = [
        browser,
        '--headless',
        '--no-sandbox',
        '--disable-gpu',
        '--disable-dev-shm-usage',
        '--window-size=1100,1400',
    ]
    address = (tmp_path / 'page.html').as_uri()
    done = subprocess.run([*command, '--dump-dom', address], check=True, capture_output=True, text=True, timeout=300)
    found = json.loads(html.unescape(re.search('<title>(.*?)</title>', done.stdout)[1]))
    assert set(found['parts']) == parts_of(recipe)
    # Curves, confusion, two images in each of worst and best; precision and recall of a detector.
    assert len(found['widths']) == 6 + (recipe == 'mask_rcnn') and min(found['widths']) > 100
    assert found['overflow'] <= 0, 'wider than the window'
    picture = tmp_path / 'page.png'
    address = (work_dir / 'report.html').as_uri()
    subprocess.run([*command, f'--screenshot={picture}', address], check=True, capture_output=True, timeout=300)
    pixels = np.array(Image.open(picture).convert('L'))
    assert pixels.shape == (1400, 1100) and len(np.unique(pixels)) > 50, 'not an empty page'
