"""examples/serve: what the server answers, and what it refuses."""

import runpy

import cv2
import numpy as np
import pytest
from helpers import ROOT

pytest.importorskip('fastapi', reason='pip install fastapi httpx')
pytest.importorskip('httpx', reason='pip install httpx')
pytest.importorskip('onnxruntime')


@pytest.fixture
def client(small_file, monkeypatch):
    """A client of the application with a file that finds one dog in the left half of every image."""
    from fastapi.testclient import TestClient

    monkeypatch.setenv('MODEL', str(small_file))
    monkeypatch.setenv('MAX_BYTES', '5000')
    return TestClient(runpy.run_path(str(ROOT / 'examples/serve/app.py'))['app'])


def test_server(client):
    assert client.get('/health').json() == dict(status='ok', task='detection', classes=2)
    image = cv2.imencode('.png', np.zeros((16, 16, 3), np.uint8))[1].tobytes()
    answer = client.post('/predict', content=image).json()
    assert answer['names'] == ['cat', 'dog']
    assert [(one['category_id'], one['bbox'], one['score']) for one in answer['annotations']] == [
        (2, [0.0, 0.0, 8.0, 16.0], 0.75)
    ]


def test_refusals(client):
    no_image = client.post('/predict', content=b'no image')
    assert no_image.status_code == 400
    assert no_image.json()['detail'] == 'the image could not be read as an image: check the file'
    assert client.post('/predict', content=b'x' * 5000).status_code == 400
    assert client.post('/predict', content=b'x' * 5001).status_code == 413
    without_length = client.post('/predict', content=iter([b'x' * 3000, b'x' * 3000]))
    assert without_length.status_code == 413 and 'at most 5000 bytes' in without_length.json()['detail']
