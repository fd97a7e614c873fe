"""An exported model behind HTTP: MODEL=model.onnx uvicorn app:app

POST /predict with the bytes of an image answers the detections as COCO annotations, or the label map as a PNG.
"""

import os
import threading

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse

from convnext_dense import UserError
from convnext_dense.images import decode_image, encode_image
from convnext_dense.runtime import LabelMap, Model

MAX_BYTES = int(os.environ.get('MAX_BYTES', 10 * 2**20))
SCORE_THRESHOLD = float(os.environ.get('SCORE_THRESHOLD', 0.3))

app = FastAPI(title='convnext_dense')
model = Model(os.environ['MODEL'], threads=int(os.environ.get('THREADS', 0)) or None)
one_at_a_time = threading.Lock()  # a runtime uses every core for one image


@app.get('/health')
def health() -> dict[str, object]:
    return dict(status='ok', task=model.metadata['task'], classes=len(model.names))


async def image_bytes(request: Request) -> bytes:
    """Read the body, but never more of it than is allowed, whatever its header says."""
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > MAX_BYTES:
            raise HTTPException(413, f'an image has at most {MAX_BYTES} bytes')
    return bytes(content)


@app.post('/predict')
async def predict(request: Request) -> Response:
    content = await image_bytes(request)
    return await run_in_threadpool(answer, content)


def answer(content: bytes) -> Response:
    try:
        image = decode_image(content)
        with one_at_a_time:
            result = model.predict(image)
    except UserError as error:
        raise HTTPException(400, str(error)) from error
    if isinstance(result, LabelMap):
        return Response(encode_image('.png', result.as_png_array()), media_type='image/png')
    found = result.above(SCORE_THRESHOLD)
    return JSONResponse(dict(names=list(found.names), annotations=found.coco_annotations(image_id=1)))
