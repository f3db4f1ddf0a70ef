from __future__ import annotations

import io
import zlib
from math import prod

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from glyphrun.images import ImageError, ImageProcessor, decode_image, encode_image, stack_frames


def encoded(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


def bright_corner() -> Image.Image:
    pixels = np.zeros((32, 48, 3), np.uint8)
    pixels[:16, :16] = 255
    return Image.fromarray(pixels)


# Where the stored picture's top left corner has to be shown, by the EXIF standard's table of orientations.
CORNERS = {1: "tl", 2: "tr", 3: "br", 4: "bl", 5: "tl", 6: "tr", 7: "br", 8: "bl"}


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright_by_their_exif(format, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if format == "WEBP" else {}
    pixels = decode_image(encoded(bright_corner(), format, exif=exif, **options))
    assert pixels.shape == ((32, 48, 3) if orientation <= 4 else (48, 32, 3))
    corners = {"tl": pixels[4, 4], "tr": pixels[4, -4], "bl": pixels[-4, 4], "br": pixels[-4, -4]}
    assert [name for name, colour in corners.items() if colour.min() > 200] == [CORNERS[orientation]]


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_and_not_clipped(format):
    grey = np.array([[0, 257 * 100, 257 * 200, 65535]], np.uint16)
    pixels = decode_image(encoded(Image.fromarray(grey), format))
    assert pixels[0, :, 0].tolist() == [0, 100, 200, 255]


def test_transparent_pixels_show_white():
    for mode, clear, solid in [("RGBA", (9, 9, 9, 0), (10, 20, 30, 255)), ("LA", (9, 0), (10, 255))]:
        image = Image.new(mode, (2, 1), clear)
        image.putpixel((1, 0), solid)
        pixels = decode_image(encoded(image, "PNG"))
        assert pixels[0, 0].tolist() == [255, 255, 255]
        assert pixels[0, 1, 0] == 10
    half = decode_image(encoded(Image.new("RGBA", (1, 1), (0, 0, 0, 128)), "PNG"))
    assert half[0, 0].tolist() == [127, 127, 127]


@pytest.mark.parametrize("format", ["PNG", "GIF"])
def test_a_palette_with_a_transparent_colour_shows_white_there(format):
    image = Image.new("P", (2, 1))
    image.putpalette([200, 0, 0, 0, 0, 200])
    image.putpixel((1, 0), 1)
    pixels = decode_image(encoded(image, format, transparency=0))
    assert pixels[0].tolist() == [[255, 255, 255], [0, 0, 200]]


def test_cmyk_and_grey_become_rgb():
    cyan = decode_image(encoded(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "JPEG", quality=100))
    assert np.abs(cyan.astype(int) - [0, 255, 255]).max() <= 4
    assert decode_image(encoded(Image.new("L", (2, 2), 77), "BMP")).tolist() == [[[77] * 3] * 2] * 2
    assert decode_image(encoded(Image.new("1", (2, 2), 1), "PNG")).min() == 255


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_several_images_in_one_file_are_refused(format):
    other = Image.new("RGB", (48, 32), "red")
    data = encoded(bright_corner(), format, save_all=True, append_images=[other])
    with pytest.raises(ImageError, match=r"clip holds several images; send each frame"):
        decode_image(data, name="clip")


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
def test_every_cut_of_a_file_is_an_image_or_an_error_sentence(format):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8))
    data = encoded(noise, format)
    for length in range(1, len(data), max(1, len(data) // 60)):
        try:
            assert decode_image(data[:length]).shape == (20, 20, 3)
        except ImageError as error:
            assert "image" in str(error)
    with pytest.raises(ImageError, match="photo is"):
        decode_image(data[: len(data) // 2], name="photo")


@pytest.mark.parametrize("data", [b"", b"GIF89a", b"<svg></svg>", b"%PDF-1.7", bytes(500)])
def test_what_is_no_image_is_named_and_refused(data):
    with pytest.raises(ImageError, match=r"^upload 3 is "):
        decode_image(data, name="upload 3")


def test_formats_that_were_not_asked_for_are_refused():
    with pytest.raises(ImageError, match="not a readable"):
        decode_image(encoded(Image.new("RGB", (4, 4)), "PPM"))


def test_too_many_pixels_are_refused_by_the_header_alone():
    data = encoded(Image.new("RGB", (300, 200)), "PNG")
    assert decode_image(data, max_pixels=60_000).shape == (200, 300, 3)
    with pytest.raises(ImageError, match="300 × 200"):
        decode_image(data, max_pixels=59_999)
    # The header promises 60,000 × 60,000 and no pixels follow: a decoder would complain about those instead.
    huge = data[:16] + (60_000).to_bytes(4, "big") * 2 + data[24:29]
    huge += zlib.crc32(huge[12:29]).to_bytes(4, "big") + data[33:]
    with pytest.raises(ImageError, match="more than 40,000,000 pixels"):
        decode_image(huge)


def test_float_pixels_have_no_scale_and_are_refused():
    with pytest.raises(ImageError, match="32-bit"):
        decode_image(encoded(Image.new("F", (2, 2), 0.5), "TIFF"))


def test_encode_then_decode_keeps_every_pixel():
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    assert np.array_equal(decode_image(encode_image(pixels)), pixels)


def test_keep_aspect_fits_at_the_top_left_and_masks_the_padding():
    processor = ImageProcessor(height=32, width=128, resize="keep-aspect", padding=7)
    frame = processor(np.full((48, 96, 3), 200, np.uint8))
    assert frame.pixels.shape == (3, 32, 128)
    assert frame.pixels[:, :, :64].min() == 200
    assert np.all(frame.pixels[:, :, 64:] == 7)
    assert frame.size == (32, 64)


@pytest.mark.parametrize(("height", "width", "area"), [(1, 5000, 128), (5000, 1, 32), (1, 1, 32 * 32)])
def test_extreme_shapes_keep_at_least_one_pixel(height, width, area):
    frame = ImageProcessor(height=32, width=128, resize="keep-aspect")(np.zeros((height, width, 3), np.uint8))
    assert prod(frame.size) == area


def test_squeeze_fills_the_frame_and_antialiases():
    checks = np.indices((64, 256)).sum(axis=0) % 2 * 255
    image = np.repeat(checks[..., None], 3, axis=2).astype(np.uint8)
    frame = ImageProcessor(height=32, width=128)(image)
    assert frame.size == (32, 128)
    # Without antialiasing a checkerboard of single pixels would stay black and white.
    assert np.abs(frame.pixels[:, 2:-2, 2:-2].astype(int) - 127).max() <= 3


def test_normalise_maps_black_and_white_to_minus_one_and_one():
    processor = ImageProcessor(height=2, width=2)
    frames = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1, 1).expand(2, 5, 3, 2, 2)
    result = processor.normalise(frames)
    assert result.shape == (2, 5, 3, 2, 2)
    assert result.dtype == torch.float32
    assert result[0].unique().tolist() == [-1.0]
    assert result[1].unique().tolist() == [1.0]
    assert processor.normalise(frames, torch.bfloat16).dtype == torch.bfloat16


def test_normalise_uses_each_channels_own_mean_and_deviation():
    processor = ImageProcessor(height=1, width=1, mean=(0.0, 0.5, 1.0), std=(1.0, 0.5, 0.25))
    result = processor.normalise(torch.full((3, 1, 1), 255, dtype=torch.uint8))
    assert result.flatten().tolist() == [1.0, 1.0, 0.0]
    with pytest.raises(ImageError, match="uint8"):
        processor.normalise(torch.zeros(3, 1, 1))


def test_a_processor_survives_json_and_refuses_unknown_keys():
    processor = ImageProcessor(height=48, width=768, resize="keep-aspect", interpolation="bilinear", padding=255)
    assert ImageProcessor.model_validate_json(processor.model_dump_json()) == processor
    with pytest.raises(ValidationError, match="heigth"):
        ImageProcessor.model_validate({"height": 1, "width": 1, "heigth": 2})
    with pytest.raises(ValidationError):
        ImageProcessor(height=1, width=1, std=(0.5, 0.5, 0.0))


def test_a_line_keeps_its_height_and_is_as_wide_as_it_is():
    processor = ImageProcessor(height=48, width=400, resize="line")
    assert processor(np.zeros((96, 300, 3), np.uint8)).pixels.shape == (3, 48, 150)
    assert processor(np.zeros((48, 3000, 3), np.uint8)).pixels.shape == (3, 48, 400)
    assert processor(np.zeros((4800, 3, 3), np.uint8)).size == (48, 1)


@pytest.mark.parametrize(
    ("height", "width", "fitted"),
    [(100, 300, (112, 308)), (2000, 1000, (616, 308)), (10, 10, (56, 56)), (1, 150, (28, 700))],
)
def test_a_budget_bounds_the_area_and_rounds_both_sides(height, width, fitted):
    processor = ImageProcessor(height=448, width=448, resize="budget", multiple=28, min_pixels=56 * 56)
    frame = processor(np.zeros((height, width, 3), np.uint8))
    assert frame.size == fitted == frame.pixels.shape[1:]
    assert prod(fitted) <= 448 * 448 and not any(side % 28 for side in fitted)


def test_a_picture_too_long_for_a_budget_is_refused():
    processor = ImageProcessor(height=448, width=448, resize="budget", multiple=28)
    with pytest.raises(ImageError, match="2010 × 10, longer than 200 times"):
        processor(np.zeros((10, 2010, 3), np.uint8))


def test_frames_of_a_tracklet_are_padded_to_its_widest():
    processor = ImageProcessor(height=8, width=40, resize="line", padding=255)
    stack = stack_frames([processor(np.zeros((8, width, 3), np.uint8)) for width in (10, 24)], processor.padding)
    assert stack.shape == (2, 8, 24)
    assert stack.sizes.tolist() == [[8, 10], [8, 24]]
    assert stack.pixels[0, :, :, 10:].min() == 255 and stack.pixels[0, :, :, :10].max() == 0
