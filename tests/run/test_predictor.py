"""Predictor: the results of tools/test.py for the same images, and the checkpoints that it takes."""

import copy
import json
import pickle
import shutil

import cv2
import numpy as np
import pytest
import torch
from helpers import ROOT
from mmengine.registry import MODELS, init_default_scope

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')

from convnext_dense import Predictor, UserError  # noqa: E402
from convnext_dense.results import LabelMap  # noqa: E402
from convnext_dense.run.predictor import as_picture  # noqa: E402

MASK_RCNN = ROOT / 'configs/mask_rcnn/convnext_digits.py'
UPERNET = ROOT / 'configs/upernet/convnext_digits.py'
OPTIONS = {
    MASK_RCNN: [
        'model.backbone.arch.depths=[1,1,1,1]',
        'model.backbone.arch.channels=[8,16,24,32]',
        'model.neck.in_channels=[8,16,24,32]',
    ],
    UPERNET: ['model.auxiliary_head=None'],
}
# What tools/test.py and predict have to read alike: options of LoadImageFromFile, of the model, and the images.
LOADERS = {
    'four channels of 16 bits': (
        ['color_type=unchanged'],
        [
            'model.backbone.in_channels=4',
            'model.data_preprocessor.mean=None',
            'model.data_preprocessor.std=None',
            'model.data_preprocessor.bgr_to_rgb=False',
        ],
        lambda image: np.dstack([image, image[:, :, :1]]).astype(np.uint16) * 200,
    ),
    'orientation ignored': (['color_type=color_ignore_orientation'], [], None),
    'Pillow, in float': (['imdecode_backend=pillow', 'to_float32=True'], [], lambda image: image),
}


def random_model(config, options=()):
    """A digits model whose random weights find something."""
    from convnext_dense.run.options import read_config

    cfg = read_config(str(config), [*OPTIONS[config], *options])
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    return MODELS.build(cfg.model)


def write_images(folder, changed):
    """Small images under the names of the digits; ``changed`` is what a PNG holds, None makes a JPEG to be turned."""
    from PIL import Image

    for i, path in enumerate(sorted(folder.iterdir())):
        image = cv2.resize(cv2.imread(str(path)), (20 + 4 * i, 30))
        if changed is not None:
            path.write_bytes(cv2.imencode('.png', changed(image))[1].tobytes())
            continue
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(image).save(path, exif=exif)


@pytest.mark.parametrize('name', list(LOADERS))
def test_scores_are_those_of_the_test(name, digits, tmp_path, tool):
    loader, changes, changed = LOADERS[name]
    shutil.copytree(digits, tmp_path / 'data')
    folder = tmp_path / 'data/digits/coco/val2017'
    for path in sorted(folder.iterdir())[3:]:
        path.unlink()
    write_images(folder, changed)
    annotations = tmp_path / 'data/digits/coco/annotations/instances_val2017.json'
    content = json.loads(annotations.read_text())
    content['images'] = [image for image in content['images'] if (folder / image['file_name']).exists()]
    content['annotations'] = [one for one in content['annotations'] if one['image_id'] <= len(content['images'])]
    annotations.write_text(json.dumps(content))
    torch.save(random_model(MASK_RCNN, changes).state_dict(), tmp_path / 'model.pth')

    options = [*OPTIONS[MASK_RCNN], *changes, 'test_dataloader.batch_size=1', 'test_dataloader.num_workers=0']
    options += ['test_dataloader.persistent_workers=False']
    options += [f'test_dataloader.dataset.pipeline.0.{option}' for option in loader]
    out = tmp_path / 'test.pkl'
    message, _ = tool(
        'test', MASK_RCNN, tmp_path / 'model.pth', '--work-dir', tmp_path / 'work', '--out', out,
        '--no-data-check',  # the images have other sizes than the JSON says
        '--cfg-options', *options, data=tmp_path / 'data',
    )  # fmt: skip
    assert message is None
    expected = pickle.loads(out.read_bytes())
    results = Predictor(MASK_RCNN, tmp_path / 'model.pth', cfg_options=options)(folder)
    assert len(results) == len(expected) == 3
    for result, sample in zip(results, expected, strict=True):
        assert result.size == tuple(sample['ori_shape'])
        instances = sample['pred_instances']
        assert len(result) == len(instances['scores']) == 10
        np.testing.assert_allclose(result.scores, instances['scores'], atol=1e-6)
        np.testing.assert_allclose(result.boxes, instances['bboxes'], atol=1e-3)
        assert result.labels.tolist() == instances['labels'].tolist()
        assert result.masks.shape == (10, *result.size)


@pytest.fixture(scope='module')
def segmentor(tmp_path_factory):
    """Config, checkpoint and predictor of a tiny UperNet."""
    path = tmp_path_factory.mktemp('segmentor') / 'model.pth'
    torch.save(dict(state_dict=random_model(UPERNET).state_dict(), meta={}), path)
    return path, Predictor(UPERNET, path, cfg_options=OPTIONS[UPERNET])


def test_arrays_paths_folders_and_batches(segmentor, tmp_path):
    _, predictor = segmentor
    generator = np.random.default_rng(0)
    arrays = [generator.integers(0, 256, (40, width, 3), np.uint8) for width in (40, 40, 60)]
    for i, array in enumerate(arrays):
        cv2.imwrite(str(tmp_path / f'{i}.png'), array[:, :, ::-1])
    expected = predictor(arrays)
    assert all(isinstance(result, LabelMap) for result in expected)
    assert [result.size for result in expected] == [(40, 40), (40, 40), (40, 60)]
    assert len(np.unique(expected[0].labels)) > 1
    assert expected[0].names[:3] == ['background', '0', '1'] and expected[0].palette[1] == [31, 119, 180]
    others = [
        predictor(tmp_path),
        predictor([tmp_path / '0.png', str(tmp_path / '1.png'), arrays[2]], batch_size=3),
        [*predictor(np.stack(arrays[:2]), batch_size=2), *predictor(str(tmp_path / '2.png'))],
    ]
    for results in others:
        for result, wanted in zip(results, expected, strict=True):
            assert (result.labels == wanted.labels).mean() > 0.999
    picture, result = predictor.with_picture(tmp_path / '2.png')
    np.testing.assert_array_equal(picture, arrays[2])


def test_images_that_cannot_be_read(segmentor, tmp_path):
    _, predictor = segmentor
    (tmp_path / 'broken.jpg').write_bytes(b'no image')
    with pytest.raises(UserError, match=r'broken.jpg could not be read as an image \(.*\): check the file'):
        predictor(tmp_path / 'broken.jpg')
    with pytest.raises(UserError, match='there is no image or folder gone.jpg'):
        predictor('gone.jpg')
    with pytest.raises(UserError, match='an image is a path or a NumPy array, found int'):
        predictor([3])


def test_takes_the_checkpoints_that_the_test_takes(segmentor, tmp_path):
    path, predictor = segmentor
    state = torch.load(path)['state_dict']
    wrapped = {'model': {f'module.{name}': value for name, value in state.items()}, 'epoch': 3}
    torch.save(wrapped, tmp_path / 'wrapped.pth')
    image = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    other = Predictor(UPERNET, tmp_path / 'wrapped.pth', cfg_options=OPTIONS[UPERNET])
    np.testing.assert_array_equal(other(image)[0].labels, predictor(image)[0].labels)


@pytest.mark.parametrize('lost', ['decode_head.conv_seg.weight', 'decode_head', 'backbone'])
def test_a_partial_model_is_refused(lost, segmentor, tmp_path):
    path, _ = segmentor
    state = torch.load(path)['state_dict']
    kept = {name: value for name, value in state.items() if not name.startswith(lost)}
    torch.save(dict(state_dict=kept), tmp_path / 'partial.pth')
    reason = 'the checkpoint holds no ConvNeXt' if lost == 'backbone' else 'the checkpoint lacks .* tensors'
    with pytest.raises(UserError, match=reason):
        Predictor(UPERNET, tmp_path / 'partial.pth', cfg_options=OPTIONS[UPERNET])


def test_weights_that_are_not_finite_are_refused(segmentor, tmp_path):
    path, _ = segmentor
    checkpoint = torch.load(path)
    name = 'backbone.stages.0.0.pwconv1.weight'
    checkpoint['state_dict'][name][0, 0] = float('nan')
    torch.save(checkpoint, tmp_path / 'nan.pth')
    with pytest.raises(UserError, match=rf'NaN or infinite numbers in 1 of its \d+ tensors \({name}\)'):
        Predictor(UPERNET, tmp_path / 'nan.pth', cfg_options=OPTIONS[UPERNET])


def test_a_head_for_other_classes_is_refused(segmentor):
    path, _ = segmentor
    with pytest.raises(UserError, match='the checkpoint lacks 2 tensors of the model, or has them in other shapes'):
        Predictor(UPERNET, path, cfg_options=[*OPTIONS[UPERNET], 'model.decode_head.num_classes=7'])


def test_a_config_is_not_changed(segmentor):
    path, _ = segmentor
    from convnext_dense.run.options import read_config

    cfg = read_config(str(UPERNET), OPTIONS[UPERNET])
    before = copy.deepcopy(cfg.to_dict())
    assert Predictor(cfg, path).names[-1] == '9'
    assert cfg.to_dict() == before
    with pytest.raises(UserError, match='cfg_options change a config file, found a Config'):
        Predictor(cfg, path, cfg_options=['a=1'])


@pytest.mark.parametrize(
    'image, expected',
    [
        (np.uint8([[[1, 2, 3]]]), [3, 2, 1]),
        (np.uint8([[7]]), [7, 7, 7]),
        (np.uint16([[[0, 500, 1000, 9]]]), [255, 127, 0]),
        (np.float32([[[1.5, 300, -4]]]), [0, 255, 1]),
        (np.float32([[[1, 250, 4]]]), [4, 250, 1]),
    ],
)
def test_as_picture(image, expected):
    assert as_picture(image)[0, 0].tolist() == expected
