"""Pictures of datasets: found below their folder, opened upright in RGB, or refused by name."""

import hashlib
import os
import struct
import warnings
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from tuning.errors import DataError

MAX_PIXELS = 100_000_000  # a file of a few kilobytes can claim more than any memory holds
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # Pillow knows more, and starts programs for some
# What its decoders trip over in a broken file.
BROKEN = (OSError, EOFError, ValueError, TypeError, SyntaxError, ArithmeticError, LookupError, struct.error)
# Pillow warns of what is refused here. For good: threads that open pictures would mix up what they put back.
warnings.filterwarnings("ignore", module=r"PIL\.")


def picture_path(name: str, folder: Path, where: str) -> Path:
    """The file that a row's picture path leads to, below `folder`; links in that folder may lead anywhere.

    Raises:
        DataError: the path leads out of the folder, or there is no such file.
    """
    root = folder.absolute()
    path = Path(os.path.normpath(root / name))  # by its text: links are the user's own
    if not path.is_relative_to(os.path.normpath(root)):
        raise DataError(
            f"{where}: {name} leads out of {folder}, where the pictures are; write a path below it, "
            "or set pictures.folder."
        )
    if not os.path.isfile(path):  # noqa: PTH113 - Path.is_file raises where a name is too long or a folder is closed
        raise DataError(f"{where}: {name}: no such picture in {folder}; mend the path or put the file there.")
    return path


def open_picture(path: Path, where: str) -> Image.Image:
    """A picture in RGB, turned upright as its EXIF says, on white where it is transparent; the first of an animation.

    Raises:
        DataError: it cannot be read, is no picture, is broken, or has more than `MAX_PIXELS`.
    """
    try:
        with Image.open(path, formats=FORMATS) as opened:
            refuse_oversized(opened, path, where)
            opened.load()
            picture = _eight_bits(ImageOps.exif_transpose(opened))
            if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
                ground = Image.new("RGBA", picture.size, "white")
                picture = Image.alpha_composite(ground, picture.convert("RGBA"))
            return picture.convert("RGB")
    except UnidentifiedImageError as error:
        raise DataError(f"{where}: {path} is no picture that can be read; give a JPEG, PNG or WebP file.") from error
    except Image.DecompressionBombError as error:
        raise DataError(f"{where}: {path} has too many pixels ({error}); make it smaller.") from error
    except BROKEN as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{where}: {path} is broken or cannot be read ({reason}); get the file again.") from error


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Deep greys scaled to 8 bits: Pillow would clip them to white."""
    if picture.mode == "F":
        raise ValueError("its pixels are measurements without a scale; save it with 8 bits a colour")
    if not picture.mode.startswith("I"):
        return picture
    grey = picture.convert("I").point(lambda value: value * (1 / 257) + 0.5).convert("L")
    grey.info.pop("transparency", None)  # a value of the 16 bits
    return grey


def refuse_oversized(picture: Image.Image, path: Path, where: str) -> None:
    """Look at the size that a file claims, before its pixels take memory.

    Raises:
        DataError: more than `MAX_PIXELS`, or no pixels at all.
    """
    width, height = picture.size
    if width * height > MAX_PIXELS or not width * height:
        raise DataError(
            f"{where}: {path} is {width} x {height} pixels, and {MAX_PIXELS // 10**6} million are the most that are "
            "opened; make it smaller."
        )


def picture_hash(path: Path) -> str:
    """sha256 of the file's bytes: what tells pictures apart, whatever they are called."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
