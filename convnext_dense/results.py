"""What a detector or segmentor found in one image, and the files and pictures made of it.

Needs NumPy and either OpenCV or Pillow; neither torch nor a toolkit.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from convnext_dense.durable import write_durably
from convnext_dense.errors import UserError
from convnext_dense.images import opencv, write_image
from convnext_dense.outputs import check_folder_output, write_failure

Palette = Sequence[Sequence[int]]

FILL = 0.5  # opacity of a mask or label in a picture
# Of the first classes: to be seen on photographs, and told apart.
BRIGHT = ((230, 25, 75), (0, 130, 200), (255, 225, 25), (240, 50, 230), (70, 240, 240), (245, 130, 48), (145, 30, 180))


@dataclass
class Detections:
    """Objects in one image, best first.

    Attributes:
        boxes: (N, 4) float, x0, y0, x1, y1 in pixels of the image.
        scores: (N,) float, 0 to 1.
        labels: (N,) int, indices into ``names``.
        names: Of all classes of the model.
        size: Height and width of the image in pixels.
        masks: (N, height, width) bool, or None for a model without masks.
        palette: A colour (R, G, B) per class; empty for colours of our own.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    names: Sequence[str]
    size: tuple[int, int]
    masks: np.ndarray | None = None
    palette: Palette = ()

    def __len__(self) -> int:
        return len(self.scores)

    def above(self, threshold: float) -> Detections:
        """Return the detections with a score of at least ``threshold``."""
        kept = np.flatnonzero(self.scores >= threshold)
        masks = None if self.masks is None else self.masks[kept]
        return Detections(
            self.boxes[kept], self.scores[kept], self.labels[kept], self.names, self.size, masks, self.palette
        )

    def coco_annotations(self, image_id: int, first_id: int = 1) -> list[dict[str, Any]]:
        """Return the detections as COCO annotations with scores; category ids count from 1, masks are RLE."""
        annotations: list[dict[str, Any]] = []
        for i in range(len(self)):
            x0, y0, x1, y1 = (round(float(value), 2) for value in self.boxes[i])
            annotation: dict[str, Any] = dict(
                id=first_id + i,
                image_id=image_id,
                category_id=int(self.labels[i]) + 1,
                bbox=[x0, y0, round(x1 - x0, 2), round(y1 - y0, 2)],
                area=round((x1 - x0) * (y1 - y0), 2),
                score=round(float(self.scores[i]), 4),
                iscrowd=0,
            )
            if self.masks is not None:
                annotation.update(segmentation=encode_rle(self.masks[i]), area=int(self.masks[i].sum()))
            annotations.append(annotation)
        return annotations

    def to_supervision(self) -> Any:
        """Return the detections as ``supervision.Detections``, with the class names in ``data['class_name']``.

        Raises:
            UserError: supervision is not installed.
        """
        try:
            from supervision import Detections as SupervisionDetections
        except ModuleNotFoundError:
            raise UserError("supervision is not installed: pip install 'convnext-dense[data]'") from None
        return SupervisionDetections(
            xyxy=np.asarray(self.boxes, np.float32).reshape(-1, 4),
            mask=self.masks,
            confidence=np.asarray(self.scores, np.float32),
            class_id=np.asarray(self.labels, int),
            data=dict(class_name=np.array([self.names[label] for label in self.labels], str)),
        )

    def draw(self, image: np.ndarray, with_names: bool = True, with_scores: bool = True) -> np.ndarray:
        """Return a copy of ``image`` (height, width, 3), RGB uint8, with boxes, masks, names and scores."""
        picture = image.copy()
        colours = class_colours(len(self.names), self.palette)
        for i in reversed(range(len(self))):  # the best on top
            colour = colours[self.labels[i]]
            if self.masks is not None:
                covered = self.masks[i]
                picture[covered] = _blend(picture[covered], colour)
            _draw_box(picture, self.boxes[i], colour)
        for i in reversed(range(len(self))):
            name = self.names[self.labels[i]] if with_names else ''
            text = f'{name} {self.scores[i]:.2f}'.strip() if with_scores else name
            if text:
                _draw_text(picture, text, self.boxes[i][:2], colours[self.labels[i]])
        return picture


@dataclass
class LabelMap:
    """A class for every pixel of one image.

    Attributes:
        labels: (height, width) int, indices into ``names``.
        names: Of all classes of the model.
        palette: A colour (R, G, B) per class; empty for colours of our own.
    """

    labels: np.ndarray
    names: Sequence[str]
    palette: Palette = ()

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image in pixels."""
        height, width = self.labels.shape
        return height, width

    def as_png_array(self) -> np.ndarray:
        """Return the labels as uint8, or as uint16 if the model has more than 255 classes.

        Raises:
            UserError: The model has more than 65,536 classes.
        """
        if len(self.names) > 2**16:
            raise UserError(f'a PNG file holds labels below 65536, found {len(self.names)} classes: use fewer classes')
        return self.labels.astype(np.uint8 if len(self.names) < 2**8 else np.uint16)

    def draw(self, image: np.ndarray) -> np.ndarray:
        """Return a copy of ``image`` (height, width, 3), RGB uint8, under the colours of the labels."""
        colours = class_colours(max(len(self.names), int(self.labels.max(initial=0)) + 1), self.palette)
        return _blend(image, colours[self.labels])


Result = Detections | LabelMap


@dataclass
class PredictionFolder:
    """A folder with the predictions for many images.

    ``predictions.json`` is a complete COCO file with scores, written by :meth:`finish` if the model is a detector;
    ``labels/NAME.png`` are label maps with class indices from 0; ``pictures/NAME.png`` shows either.

    Attributes:
        path: A folder that does not exist, or is empty.
        score_threshold: Detections with lower scores are left out.
    """

    path: Path
    score_threshold: float = 0.3
    _images: list[dict[str, Any]] = field(default_factory=list)
    _annotations: list[dict[str, Any]] = field(default_factory=list)
    _names: Sequence[str] | None = None

    def check_usable(self) -> None:
        """Refuse, before any work, a folder that is in use or cannot be written.

        Raises:
            UserError: The folder is not empty, is a file, or is in a place where nothing can be written.
        """
        check_folder_output(self.path)

    def add(self, name: str, image: np.ndarray, result: Result) -> None:
        """Write the picture and the label map, and keep the detections for :meth:`finish`.

        Args:
            name: Of the image file; a sub-folder in it is kept.
            image: (height, width, 3), RGB uint8.
            result: Of this image.
        """
        if isinstance(result, LabelMap):
            write_image(self.path / 'labels' / Path(name).with_suffix('.png'), result.as_png_array())
        else:
            result = result.above(self.score_threshold)
        write_image(self.path / 'pictures' / Path(name).with_suffix('.png'), result.draw(image))
        if isinstance(result, Detections):
            height, width = result.size
            self._images.append(dict(id=len(self._images) + 1, file_name=name, height=height, width=width))
            self._annotations += result.coco_annotations(len(self._images), len(self._annotations) + 1)
            self._names = result.names

    def finish(self) -> None:
        """Write ``predictions.json`` if there was an image with detections or without, but from a detector."""
        if self._names is None:
            return
        categories = [dict(id=i + 1, name=name) for i, name in enumerate(self._names)]
        content = dict(images=self._images, annotations=self._annotations, categories=categories)
        write_durably(self.path / 'predictions.json', json.dumps(content))


def write_predictions(
    files: Iterable[tuple[str, Path]],
    folder: PredictionFolder,
    predict: Callable[[Path], tuple[np.ndarray, Result]],
) -> None:
    """Predict many images, each by itself: one that fails, or SIGTERM or SIGHUP, leaves the others written.

    Args:
        files: Names in the output and files, the items of :func:`convnext_dense.images.find_images`.
        folder: Where the predictions go.
        predict: Returns the picture to draw on, (height, width, 3) RGB uint8, and the result for a file.

    Raises:
        UserError: Images failed, or the folder cannot be written.
    """
    total = 0
    failed: list[Path] = []
    with _signals_as_exit():
        try:
            try:
                for name, path in files:
                    total += 1
                    try:
                        image, result = predict(path)
                    except Exception as error:  # whatever decoders and models raise; the other images are wanted
                        failed.append(path)
                        reason = str(error) if isinstance(error, UserError) else _clause(path, error)
                        print(f'skipped: {reason}', flush=True)
                        continue
                    folder.add(name, image, result)
            finally:
                folder.finish()
        except OSError as error:
            raise UserError(write_failure(folder.path, error)) from error
    print(f'predictions for {total - len(failed)} of {total} images are in {folder.path}')
    if failed:
        shown = ', '.join(map(str, failed[:5])) + (', ...' if len(failed) > 5 else '')
        raise UserError(f'{len(failed)} of {total} images were skipped, for the reasons above: {shown}')


def _clause(path: Path, error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f'{path} ({type(error).__name__}{": " + lines[0] if lines else ""})'


@contextmanager
def _signals_as_exit() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the program as SystemExit, which runs every ``finally``; in the main thread alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, lambda number, _: sys.exit(128 + number)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before):
            signal.signal(number, handler)


def encode_rle(mask: np.ndarray) -> dict[str, Any]:
    """Encode a mask as COCO's compressed run-length encoding.

    The runs go down the columns and begin with zeros. From the third on, a run is stored as its difference to the run
    two before, in groups of five bits, as in ``rleToString`` of cocoapi's ``maskApi.c``.

    Args:
        mask: (height, width) bool.

    Returns:
        ``dict(size=[height, width], counts=str)``.
    """
    height, width = mask.shape
    pixels = np.asarray(mask, bool).ravel(order='F')
    changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    starts_with_one = [0] if pixels.size and pixels[0] else []
    bounds = np.concatenate([[0], starts_with_one, changes, [pixels.size]]).astype(np.int64)
    runs = np.diff(bounds).tolist()
    characters: list[str] = []
    for i, run in enumerate(runs):
        value = run - runs[i - 2] if i > 2 else run
        while True:
            group = value & 0x1F
            value >>= 5
            done = value == (-1 if group & 0x10 else 0)
            characters.append(chr((group if done else group | 0x20) + 48))
            if done:
                break
    return dict(size=[height, width], counts=''.join(characters))


def class_colours(count: int, palette: Palette = ()) -> np.ndarray:
    """Return ``count`` colours, (count, 3) uint8: the palette, continued by colours of our own where it is short."""
    generator = np.random.default_rng(0)
    colours = generator.integers(40, 230, (count, 3)).astype(np.uint8)
    colours[: len(BRIGHT)] = np.array(BRIGHT, np.uint8)[:count]
    given = np.asarray(list(palette)[:count], np.uint8).reshape(-1, 3)
    if given.any():  # a palette of zeros says nothing
        colours[: len(given)] = given
    return colours


def _blend(pixels: np.ndarray, colours: np.ndarray) -> np.ndarray:
    return ((1 - FILL) * pixels + FILL * colours.astype(np.float32)).astype(np.uint8)


def _draw_box(picture: np.ndarray, box: np.ndarray, colour: np.ndarray, thickness: int = 2) -> None:
    height, width = picture.shape[:2]
    x0, x1 = np.clip(np.round(box[[0, 2]]), 0, width - 1).astype(int)
    y0, y1 = np.clip(np.round(box[[1, 3]]), 0, height - 1).astype(int)
    picture[y0 : y0 + thickness, x0 : x1 + 1] = colour
    picture[max(y1 - thickness + 1, 0) : y1 + 1, x0 : x1 + 1] = colour
    picture[y0 : y1 + 1, x0 : x0 + thickness] = colour
    picture[y0 : y1 + 1, max(x1 - thickness + 1, 0) : x1 + 1] = colour


def _draw_text(picture: np.ndarray, text: str, corner: np.ndarray, colour: np.ndarray) -> None:
    """Write ``text`` on a patch of ``colour`` at the upper left corner of a box."""
    patch = text_patch(text, colour)
    height, width = picture.shape[:2]
    x = int(np.clip(corner[0], 0, max(width - patch.shape[1], 0)))
    y = int(np.clip(corner[1], 0, max(height - patch.shape[0], 0)))
    area = picture[y : y + patch.shape[0], x : x + patch.shape[1]]
    area[:] = patch[: area.shape[0], : area.shape[1]]


def text_patch(text: str, colour: np.ndarray) -> np.ndarray:
    """Return an image (height, width, 3) uint8 with ``text`` in black or white on ``colour``."""
    ink = 0 if colour.mean() > 127 else 255
    cv2 = opencv()
    if cv2 is None:
        from PIL import Image, ImageDraw

        left, top, right, bottom = ImageDraw.Draw(Image.new('L', (1, 1))).textbbox((0, 0), text)
        drawn = Image.new('RGB', (int(right - left) + 4, int(bottom - top) + 4), tuple(int(c) for c in colour))
        ImageDraw.Draw(drawn).text((2 - left, 2 - top), text, fill=(ink, ink, ink))
        return np.array(drawn)
    font = cv2.FONT_HERSHEY_SIMPLEX
    (width, height), below = cv2.getTextSize(text, font, 0.4, 1)
    patch = np.empty((height + below + 3, width + 4, 3), np.uint8)
    patch[:] = colour
    cv2.putText(patch, text, (2, height + 1), font, 0.4, (ink, ink, ink), 1, cv2.LINE_AA)
    return patch
