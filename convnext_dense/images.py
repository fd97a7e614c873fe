"""Reading, writing and resizing images with OpenCV or, where it is not installed, Pillow.

Images are (height, width, 3) RGB uint8. Needs NumPy; neither torch nor a toolkit.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from convnext_dense.durable import write_durably
from convnext_dense.errors import UserError

# One image, a folder of images, or several of them; arrays are (height, width, 3) RGB uint8, or a batch of such.
Images = str | Path | np.ndarray | Iterable[str | Path | np.ndarray]

SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')


def find_images(sources: Sequence[Path]) -> dict[str, Path]:
    """Find image files; folders are searched recursively and names keep their sub-folders.

    Returns:
        ``{name in the output: file}``. A link whose target is gone is among them: whoever reads it says so.

    Raises:
        UserError: A source does not exist, there is no image, or two files would be written under one name.
    """
    found: dict[str, Path] = {}
    names: dict[Path, Path] = {}  # without the suffix: outputs have another one
    for source in sources:
        if not source.exists() and not source.is_symlink():
            raise UserError(f'there is no image or folder {source}: check the path')
        for file in _files_in(source) if source.is_dir() else [source]:
            name = str(file.relative_to(source)) if source.is_dir() else file.name
            stem = Path(name).with_suffix('')
            if stem in names:
                raise UserError(f'{names[stem]} and {file} would be written under one name: give them in two calls')
            found[name] = names[stem] = file
    if not found:
        raise UserError(f'there is no image in {", ".join(map(str, sources))} (looked for {", ".join(SUFFIXES)})')
    return found


def _files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob('*') if path.suffix.lower() in SUFFIXES and not path.is_dir())


def images_of(images: Images) -> list[Path | np.ndarray]:
    """Return a list of files and arrays from all that may be given as images; folders are searched recursively.

    Raises:
        UserError: Something is neither a path nor an array, or a path does not exist.
    """
    if isinstance(images, (str, Path)) or (isinstance(images, np.ndarray) and images.ndim < 4):
        images = [images]
    listed: list[Path | np.ndarray] = []
    for image in images:
        if isinstance(image, np.ndarray):
            listed.append(image)
        elif isinstance(image, (str, Path)):
            listed += find_images([Path(image)]).values()
        else:
            raise UserError(f'an image is a path or a NumPy array, found {type(image).__name__}: convert it')
    return listed


def check_pixels(file: Path | BinaryIO, name: object) -> None:
    """Refuse what Pillow would refuse to decode: more than ``PIL.Image.MAX_IMAGE_PIXELS`` pixels.

    Only the header is read. A format that Pillow does not know passes, and so does every file where Pillow is not
    installed.

    Args:
        file: The file, or its content.
        name: Of the file in the message.

    Raises:
        UserError: The image has too many pixels.
    """
    try:
        from PIL import Image
    except ImportError:
        return
    with warnings.catch_warnings():
        warnings.simplefilter('error', Image.DecompressionBombWarning)
        try:
            with Image.open(file):
                return
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise UserError(
                f'{name} has more than {Image.MAX_IMAGE_PIXELS:,} pixels: cut it into tiles, or set '
                'PIL.Image.MAX_IMAGE_PIXELS'
            ) from error
        except (OSError, ValueError, SyntaxError):  # whoever decodes it says why
            return


def read_image(path: Path) -> np.ndarray:
    """Read an image as mmcv reads it: turned by its EXIF orientation, without alpha, 16 bits reduced to 8.

    Returns:
        (height, width, 3), RGB uint8.

    Raises:
        UserError: The file cannot be read as an image, or has too many pixels.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f'{path} could not be read ({error.strerror or error}): check the file') from error
    return decode_image(content, path)


def decode_image(content: bytes, name: object = 'the image') -> np.ndarray:
    """Decode the content of an image file, as :func:`read_image` does.

    Args:
        content: Of the file.
        name: Of the file in messages.
    """
    check_pixels(io.BytesIO(content), name)
    image = _decode(content) if content else None
    if image is None:
        raise UserError(f'{name} could not be read as an image: check the file')
    return image


def _decode(content: bytes) -> np.ndarray | None:
    """Return the content of a file as RGB, or None if it is no image."""
    cv2 = opencv()
    if cv2 is not None:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
        return None if image is None else np.ascontiguousarray(image[:, :, ::-1])
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(content)) as opened:
            turned = ImageOps.exif_transpose(opened)
            if turned.mode.startswith('I'):  # 16 bits
                grey = (np.asarray(turned).astype(np.int64) >> 8).astype(np.uint8)
                return np.repeat(grey[:, :, None], 3, axis=2)
            return np.array(turned.convert('RGB'))
    except (OSError, ValueError, SyntaxError):
        return None


def write_image(path: Path, image: np.ndarray) -> None:
    """Write an image, (height, width, 3) RGB uint8 or (height, width) uint8 or uint16, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, encode_image(path.suffix, image))


def encode_image(suffix: str, image: np.ndarray) -> bytes:
    """Return the content of an image file.

    Args:
        suffix: Of its format, such as ``'.png'``.
        image: (height, width, 3) RGB uint8, or (height, width) uint8 or uint16.
    """
    cv2 = opencv()
    if cv2 is not None:
        pixels = image[:, :, ::-1] if image.ndim == 3 else image
        written, content = cv2.imencode(suffix, np.ascontiguousarray(pixels))
        if not written:
            raise UserError(f'an image could not be encoded as {suffix}: use .png or .jpg')
        return content.tobytes()
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(image).save(stream, Image.registered_extensions()[suffix])
    return stream.getvalue()


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize an image to ``size`` (height, width), bilinear without anti-aliasing as mmcv does."""
    if image.shape[:2] == tuple(size):
        return image
    cv2 = opencv()
    if cv2 is not None:
        return cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
    channels = np.moveaxis(image, 2, 0).astype(np.float32)
    resized = resize_bilinear(channels, size, align_corners=False)
    return np.moveaxis(np.rint(resized), 0, 2).astype(np.uint8)


def resize_bilinear(planes: np.ndarray, size: tuple[int, int], align_corners: bool) -> np.ndarray:
    """Resize planes (C, height, width) float32 to ``size``, as torch's ``F.interpolate(mode='bilinear')`` does."""
    if planes.shape[1:] == tuple(size):
        return planes
    top, bottom, fraction = _neighbours(planes.shape[1], size[0], align_corners)
    fraction = fraction[:, None]
    planes = planes[:, top] * (1 - fraction) + planes[:, bottom] * fraction
    left, right, fraction = _neighbours(planes.shape[2], size[1], align_corners)
    return planes[:, :, left] * (1 - fraction) + planes[:, :, right] * fraction


def _neighbours(old: int, new: int, align_corners: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each of ``new`` samples: both neighbours among ``old`` ones, and the weight of the second, float32."""
    samples = np.arange(new, dtype=np.float32)
    if align_corners:
        position = samples * np.float32((old - 1) / (new - 1) if new > 1 else 0)
    else:
        position = np.maximum((samples + np.float32(0.5)) * np.float32(old / new) - np.float32(0.5), 0)
    first = np.minimum(position.astype(np.int64), old - 1)
    return first, np.minimum(first + 1, old - 1), (position - first).astype(np.float32)


def opencv() -> Any:
    """Return the module ``cv2``, or None where it is not installed."""
    try:
        import cv2
    except ImportError:
        return None
    return cv2
