"""Pictures: paths stay inside their folder; files open as upright RGB or are refused in one sentence."""

import io
import os
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tuning.data.pictures import MAX_PIXELS, open_picture, picture_path
from tuning.errors import DataError

pytestmark = pytest.mark.filterwarnings(r"ignore:::PIL\..*")  # pytest puts its own filters first

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
PARTS = st.lists(st.sampled_from(["..", ".", "a", "b", "", "~", "a.png"]), min_size=1, max_size=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures, next to similar folders, all with a picture of every name that the tests use."""
    root = tmp_path_factory.mktemp("pictures")
    for place in (root, *(root / name for name in ("inside", "inside/a", "inside/b", "inside/~", "a", "b", "inside2"))):
        place.mkdir(exist_ok=True)
        (place / "a.png").write_bytes(b"picture")
    return root / "inside"


def saved(picture: Image.Image, path: Path, **options: object) -> Path:
    picture.save(path, **options)  # pyright: ignore[reportArgumentType]
    return path


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        open_picture(path, "rows.jsonl, row 3")
    assert str(caught.value).startswith("rows.jsonl, row 3: ")
    assert str(path) in str(caught.value)
    return str(caught.value)


def corners(picture: Image.Image) -> list[object]:
    """Top left, top right, bottom left, bottom right."""
    right, bottom = picture.width - 1, picture.height - 1
    return [picture.getpixel(at) for at in ((0, 0), (right, 0), (0, bottom), (right, bottom))]


@given(PARTS, st.booleans())
def test_no_path_leads_out_of_the_folder(folder: Path, parts: list[str], absolute: bool) -> None:
    name = ("/" if absolute else "") + "/".join(parts)
    meant = Path(os.path.normpath(folder / name))
    if not meant.is_relative_to(folder):
        with pytest.raises(DataError, match="leads out of"):
            picture_path(name, folder, "row 1")
    elif not meant.is_file():
        with pytest.raises(DataError, match="no such picture"):
            picture_path(name, folder, "row 1")
    else:
        assert picture_path(name, folder, "row 1") == meant


@pytest.mark.parametrize("name", ["../a.png", "/etc/hostname", "a/../../b/a.png", "../inside2/a.png", ".."])
def test_a_path_out_of_the_folder_is_refused(folder: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"row 7: .* leads out of .*pictures\.folder"):
        picture_path(name, folder, "row 7")


@pytest.mark.parametrize("name", ["a/../a.png", "./b/a.png", "~/a.png"])
def test_a_path_inside_the_folder_is_found(folder: Path, name: str) -> None:
    assert picture_path(name, folder, "row").read_bytes() == b"picture"
    assert picture_path(str(folder / name), folder, "row").is_file()


@pytest.mark.parametrize(
    "name", ["", "none.png", "a", "a\0b.png", "x" * 5000, "\ud800.png", "~nobody/a.png", "a.png/b"]
)
def test_a_missing_file_is_refused(folder: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"row 7: .*no such picture in"):
        picture_path(name, folder, "row 7")


def test_the_folder_can_be_relative_and_contain_symbolic_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "cat.png").write_bytes(b"cat")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "here" / "cat.png").symlink_to(tmp_path / "elsewhere" / "cat.png")
    monkeypatch.chdir(tmp_path)
    for name in ("link/cat.png", "cat.png"):
        assert picture_path(name, Path("here"), "row").read_bytes() == b"cat"
    (tmp_path / "here" / "dead.png").symlink_to("nowhere")
    with pytest.raises(DataError, match="no such picture"):
        picture_path("dead.png", Path("here"), "row")


def bomb(width: int, height: int) -> bytes:
    """A PNG with one bit per pixel that declares a size but contains few pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(999))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(30_000, 30_000), (10_001, 10_000), (2**31 - 1, 2**31 - 1)])
def test_a_decompression_bomb_is_refused_before_decoding(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(bomb(*size))
    assert "pixels" in refusal(path)
    assert size[0] * size[1] > MAX_PIXELS


def test_a_file_that_is_not_a_picture_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "text.jpg"
    text.write_text("not a picture")
    empty = tmp_path / "empty.png"
    empty.touch()
    script = tmp_path / "script.jpg"
    script.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    for path in (text, empty, script):
        assert "is not a readable picture" in refusal(path)
    assert "cannot be read (Is a directory)" in refusal(tmp_path)
    assert "cannot be read (No such file or directory)" in refusal(tmp_path / "none.png")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF"])
def test_a_truncated_picture_is_refused(tmp_path: Path, kind: str) -> None:
    whole = saved(Image.effect_noise((64, 64), 80), tmp_path / "whole", format=kind).read_bytes()
    path = tmp_path / "half"
    path.write_bytes(whole[: len(whole) // 2])
    refusal(path)


@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"]),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_a_damaged_picture_opens_or_is_refused(folder: Path, kind: str, damage: list[tuple[int, int]]) -> None:
    stream = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.linear_gradient("L").resize((9, 7)).save(stream, kind, **({"exif": exif} if kind in ("JPEG", "PNG") else {}))
    data = bytearray(stream.getvalue())
    for at, value in damage:
        data[at % len(data)] = value
    path = folder / "damaged"
    path.write_bytes(data)
    try:
        assert open_picture(path, "row").mode == "RGB"
    except DataError:
        refusal(path)


def test_threads_do_not_change_warning_filters(tmp_path: Path) -> None:
    path = saved(Image.effect_noise((64, 64), 80), tmp_path / "noise.png")
    filters = list(warnings.filters)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: open_picture(path, "row"), range(64)))
    assert list(warnings.filters) == filters


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(tmp_path: Path, orientation: int) -> None:
    upright = Image.new("RGB", (3, 2), WHITE)
    upright.putpixel((0, 0), RED)
    upright.putpixel((2, 1), BLUE)
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = upright if orientation == 1 else upright.transpose(undo[orientation])
    opened = open_picture(saved(stored, tmp_path / "photo.png", exif=exif), "row")
    assert opened.size == (3, 2)
    assert corners(opened) == [RED, WHITE, WHITE, BLUE]


def test_transparency_becomes_white(tmp_path: Path) -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putpixel((1, 0), 1)
    assert corners(open_picture(saved(palette, tmp_path / "p.png", transparency=1), "row"))[:2] == [RED, WHITE]
    assert corners(open_picture(saved(palette, tmp_path / "p.gif", transparency=0), "row"))[:2] == [WHITE, BLUE]
    for name in ("rgba.png", "rgba.webp", "rgba.tiff"):
        clear = Image.new("RGBA", (1, 1), (0, 0, 0, 0))
        options = {"lossless": True} if name.endswith("webp") else {}
        assert corners(open_picture(saved(clear, tmp_path / name, **options), "row"))[0] == WHITE
    grey = Image.new("LA", (1, 1), (0, 127))
    assert corners(open_picture(saved(grey, tmp_path / "la.png"), "row"))[0] == (128, 128, 128)


@pytest.mark.parametrize("name", ["deep.png", "deep.tiff", "deep.pgm"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path, name: str) -> None:
    values = np.array([[0, 257, 0x8080, 0xFFFF]], np.uint16)
    opened = open_picture(saved(Image.fromarray(values), tmp_path / name), "row")
    assert np.asarray(opened)[0].tolist() == [[0] * 3, [1] * 3, [128] * 3, [255] * 3]


def test_other_color_modes_become_rgb(tmp_path: Path) -> None:
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    red = np.asarray(open_picture(saved(cmyk, tmp_path / "print.jpg", quality=100), "row"))[4, 4]
    assert np.abs(red.astype(int) - RED).max() < 4
    assert corners(open_picture(saved(Image.new("1", (2, 2), 1), tmp_path / "bit.png"), "row"))[0] == WHITE
    floats = Image.fromarray(np.ones((2, 2), np.float32))
    assert "save it with 8 bits per channel" in refusal(saved(floats, tmp_path / "heights.tiff"))


@pytest.mark.parametrize("name", ["moving.gif", "moving.webp"])
def test_an_animation_opens_as_its_first_frame(tmp_path: Path, name: str) -> None:
    first, *rest = [Image.new("RGB", (4, 4), colour) for colour in (RED, GREEN, BLUE)]
    options = {"lossless": True} if name.endswith("webp") else {}
    path = saved(first, tmp_path / name, save_all=True, append_images=rest, **options)
    assert corners(open_picture(path, "row")) == [RED] * 4
