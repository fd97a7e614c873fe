"""Reading, writing and resizing images with OpenCV or, where it is not installed, Pillow.

Images are (height, width, 3) RGB uint8. Needs NumPy; neither torch nor a toolkit.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from convnext_dense.errors import UserError

SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')


def find_images(sources: Sequence[Path]) -> dict[str, Path]:
    """Find image files; folders are searched recursively and names keep their sub-folders.

    Returns:
        ``{name in the output: file}``.

    Raises:
        UserError: A source does not exist, there is no image, or two files would be written under one name.
    """
    found: dict[str, Path] = {}
    names: dict[Path, Path] = {}
    for source in sources:
        if not source.exists():
            raise UserError(f'there is no image or folder {source}: check the path')
        files = [source] if source.is_file() else sorted(p for p in source.rglob('*') if p.suffix.lower() in SUFFIXES)
        for file in files:
            name = file.name if source.is_file() else str(file.relative_to(source))
            stem = Path(name).with_suffix('')
            if stem in names:
                raise UserError(f'{names[stem]} and {file} would be written under one name: give them in two calls')
            found[name] = names[stem] = file
    if not found:
        raise UserError(f'there is no image in {", ".join(map(str, sources))} (looked for {", ".join(SUFFIXES)})')
    return found


def read_image(path: Path) -> np.ndarray | None:
    """Read an image as mmcv reads it: turned by its EXIF orientation, without alpha, 16 bits reduced to 8.

    Returns:
        (height, width, 3), RGB uint8; None if the file cannot be read as an image.
    """
    content = np.fromfile(path, np.uint8)
    if not content.size:
        return None
    cv2 = opencv()
    if cv2 is not None:
        image = cv2.imdecode(content, cv2.IMREAD_COLOR)
        return None if image is None else np.ascontiguousarray(image[:, :, ::-1])
    import io

    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(content.tobytes())) as opened:
            turned = ImageOps.exif_transpose(opened)
            if turned.mode.startswith('I'):  # 16 bits
                grey = (np.asarray(turned).astype(np.int64) >> 8).astype(np.uint8)
                return np.repeat(grey[:, :, None], 3, axis=2)
            return np.array(turned.convert('RGB'))
    except (OSError, ValueError, Image.DecompressionBombError):
        return None


def write_image(path: Path, image: np.ndarray) -> None:
    """Write an image, (height, width, 3) RGB uint8 or (height, width) uint8 or uint16, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2 = opencv()
    if cv2 is not None:
        pixels = image[:, :, ::-1] if image.ndim == 3 else image
        written, content = cv2.imencode(path.suffix, np.ascontiguousarray(pixels))
        if not written:
            raise UserError(f'{path} could not be encoded: give a name that ends in .png or .jpg')
        content.tofile(path)
        return
    from PIL import Image

    Image.fromarray(image).save(path)


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
