"""Pictures of datasets: resolve their paths, check them, open them as RGB."""

import os
import struct
import warnings
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from tuning.errors import DataError

MAX_PIXELS = 100_000_000  # a file of a few kilobytes can declare a size that exceeds the memory
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # for some others Pillow starts external programs
# Exceptions of Pillow's decoders on a broken file.
BROKEN = (OSError, EOFError, ValueError, TypeError, SyntaxError, ArithmeticError, LookupError, struct.error)
# Pillow warns about files that are refused here. The filter is global: `catch_warnings` is not thread-safe.
warnings.filterwarnings("ignore", module=r"PIL\.")


def picture_path(name: str, folder: Path, where: str) -> Path:
    """Resolve the picture path of a row, relative to `folder`; symbolic links may point outside it.

    Args:
        where: position of the row, for messages.

    Raises:
        DataError: the path leads out of the folder, or there is no such file.
    """
    root = folder.absolute()
    path = Path(os.path.normpath(root / name))  # without resolving symbolic links
    if not path.is_relative_to(os.path.normpath(root)):
        raise DataError(
            f"{where}: {name} leads out of the picture folder {folder}; write a path inside it, or set pictures.folder."
        )
    if not os.path.isfile(path):  # noqa: PTH113 - Path.is_file raises if a name is too long or a folder is not readable
        raise DataError(f"{where}: {name}: no such picture in {folder}; fix the path or add the file.")
    return path


def open_picture(path: Path, where: str) -> Image.Image:
    """Open a picture as RGB: EXIF rotation applied, transparency on white, the first frame of an animation.

    Args:
        where: position of the row, for messages.

    Raises:
        DataError: the file cannot be read, is not a picture, is broken, or has 0 or more than `MAX_PIXELS` pixels.
    """
    try:
        with Image.open(path, formats=FORMATS) as opened:
            width, height = opened.size
            if not 0 < width * height <= MAX_PIXELS:  # before the pixels are decoded into memory
                raise DataError(
                    f"{where}: {path} has {width} x {height} pixels; the maximum is {MAX_PIXELS // 10**6} million "
                    "pixels; make it smaller."
                )
            opened.load()
            picture = _eight_bits(ImageOps.exif_transpose(opened))
            if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
                background = Image.new("RGBA", picture.size, "white")
                picture = Image.alpha_composite(background, picture.convert("RGBA"))
            return picture.convert("RGB")
    except UnidentifiedImageError as error:
        raise DataError(f"{where}: {path} is not a readable picture; give a JPEG, PNG or WebP file.") from error
    except Image.DecompressionBombError as error:
        raise DataError(f"{where}: {path} has too many pixels ({error}); make it smaller.") from error
    except BROKEN as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{where}: {path} is broken or cannot be read ({reason}); get the file again.") from error


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Scale a greyscale picture of 16 or 32 bits to 8 bits; Pillow's `convert` would clip it to white."""
    if picture.mode == "F":
        raise ValueError("its pixels are floating-point numbers without a scale; save it with 8 bits per channel")
    if not picture.mode.startswith("I"):
        return picture
    grey = picture.convert("I").point(lambda value: value * (1 / 257) + 0.5).convert("L")
    grey.info.pop("transparency", None)  # a 16-bit value
    return grey
