"""Decoding of images: PNG or JPEG, in a folder or in a zip, to square colour arrays of the study's size."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from zlib import error as zlib_error

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from equipoise.common.errors import DataError

FORMATS = ("PNG", "JPEG")
# 8-bit modes, which Pillow turns into RGB without a loss of range; it would cut 16-bit values off at 255.
MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"})
PIXELS_MAX = 2**26  # refuses files that unpack to gigabytes
ENLARGED_MAX = 4  # times in a side; what is blown up further shows the model nothing of the patient


class ImageStore:
    """Images by name in a folder or in a zip file.

    Raises:
        DataError: there is neither a folder nor a zip file at `path`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_dir() and not zipfile.is_zipfile(path):
            raise DataError(f"{path}: neither a folder nor a .zip file; correct data.images of the site file")

    def decode(self, names: Sequence[str], rows: Sequence[int], size: int) -> Tensor:
        """Images in the order of `names`, uint8 (m, 3, size, size).

        Args:
            names: file names inside the folder or the zip.
            rows: the manifest row of each name, counted from 0; used in messages.
            size: side in pixels.

        Raises:
            DataError: an image is missing, or `decode_image` refuses it; names the file and the row.
        """
        pixels = np.empty((len(names), size, size, 3), dtype=np.uint8)
        if self.path.is_dir():
            for index, (name, row) in enumerate(zip(names, rows, strict=True)):
                pixels[index] = self._image(name, row, size, None)
        else:
            with zipfile.ZipFile(self.path) as archive:
                for index, (name, row) in enumerate(zip(names, rows, strict=True)):
                    pixels[index] = self._image(name, row, size, archive)
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()

    def _image(self, name: str, row: int, size: int, archive: zipfile.ZipFile | None) -> NDArray[np.uint8]:
        where = f"{self.path}: image {name!r} (data row {row + 1} of the manifest)"
        try:
            content = archive.read(name) if archive is not None else (self.path / name).read_bytes()
        except (KeyError, OSError):
            raise DataError(f"{where} is missing; add the file or correct the manifest") from None
        except (zipfile.BadZipFile, RuntimeError, zlib_error) as error:  # RuntimeError: encrypted, unknown packing
            raise DataError(f"{where} cannot be unpacked ({error}); pack the zip again") from None
        return decode_image(content, size, where)


def decode_image(content: bytes, size: int, where: str) -> NDArray[np.uint8]:
    """One image as uint8 (size, size, 3), RGB.

    An image of another size is cropped to its central square and resized (Lanczos); one of this size is unchanged. A
    strip or a thumbnail, whose central square would be enlarged more than `ENLARGED_MAX` times in a side, is refused.

    Args:
        content: bytes of a PNG or JPEG file.
        size: side in pixels.
        where: what the message of an error begins with.

    Raises:
        DataError: not a PNG or JPEG, damaged, too large, far too small, or with more than 8 bits per channel.
    """
    try:
        image: Image.Image = Image.open(io.BytesIO(content), formats=FORMATS)
        if image.width * image.height > PIXELS_MAX:
            raise DataError(f"{where} has {image.width} x {image.height} pixels, at most {PIXELS_MAX} are read")
        if min(image.size) < (least := -(-size // ENLARGED_MAX)):
            raise DataError(
                f"{where} has {image.width} x {image.height} pixels, expected at least {least} in each side for "
                f"inputs.size={size} of the study; replace it, or leave its row out"
            )
        if image.mode not in MODES:
            raise DataError(f"{where} has mode {image.mode}, expected 8 bits per channel; convert it")
        image = image.convert("RGB")
    except UnidentifiedImageError:
        raise DataError(f"{where} is not a PNG or JPEG file; convert it") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{where} cannot be decoded ({' '.join(str(error).split())}); replace it") from None
    if image.size != (size, size):
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        square = image.crop((left, top, left + side, top + side))
        image = square.resize((size, size), Image.Resampling.LANCZOS)
    return np.asarray(image)
