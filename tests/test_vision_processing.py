"""vision.py against transformers' own Pillow-backed image processors, and against bad files."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgespec.errors import CheckpointError, ImageError
from edgespec_runtime.images import load_image
from edgespec_runtime.vision import ImageProcessor, preprocess

MODES = ["RGB", "RGBA", "L", "LA", "P", "PA", "1", "CMYK"]
SIZES = [(640, 480), (480, 640), (100, 80), (61, 97), (224, 224), (500, 1), (1, 500), (3, 2)]
CLIP = {"image_processor_type": "CLIPImageProcessor"}
SIGLIP = {"image_processor_type": "SiglipImageProcessor"}
LLAVA = {"image_processor_type": "LlavaImageProcessorFast", "do_pad": True}
CONFIGS: dict[str, dict[str, Any]] = {
    "clip": CLIP,
    "clip336": {**CLIP, "size": {"shortest_edge": 336}, "crop_size": 336},
    "old": {"feature_extractor_type": "CLIPFeatureExtractor", "size": 40, "crop_size": 30},
    "odd": {**CLIP, "size": {"shortest_edge": 65}, "crop_size": {"height": 70, "width": 33}},
    "border": {**CLIP, "do_resize": False, "crop_size": {"height": 97, "width": 90}},
    "longest": {**CLIP, "size": {"shortest_edge": 60, "longest_edge": 80}, "crop_size": 64},
    "bilinear": {**CLIP, "resample": 2, "size": {"height": 50, "width": 70}, "crop_size": 48},
    "lanczos": {**SIGLIP, "resample": 1, "size": [77, 76]},
    "unnormalised": {**CLIP, "do_normalize": False},
    "unscaled": {**CLIP, "do_rescale": False},
    "raw": {**SIGLIP, "do_rescale": False, "do_normalize": False},
    "factor": {**SIGLIP, "rescale_factor": 1 / 127.5, "image_mean": [0.1, 0.2, 0.3]},
    "siglip": SIGLIP,
    "siglip_rectangle": {**SIGLIP, "size": {"height": 30, "width": 51}},
    "llava_pad": LLAVA,
    "llava_pad_336": {**LLAVA, "size": {"shortest_edge": 336}, "crop_size": 336},
    "llava": {"image_processor_type": "LlavaImageProcessor"},
    "null": {**SIGLIP, "do_convert_rgb": None, "data_format": "channels_first"},
}


def picture(size: tuple[int, int], mode: str = "RGB", seed: int = 0) -> Image.Image:
    rng = np.random.default_rng([seed, *size])
    pixels = rng.integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    image = Image.fromarray(pixels)
    if mode == "PA":
        return image.convert("RGB").convert("P").convert("PA")
    return image if mode == "RGBA" else image.convert("RGB").convert(mode)


def reference(config: dict[str, Any]) -> Any:
    pytest.importorskip("transformers")
    from transformers.models.clip import image_processing_pil_clip as clip
    from transformers.models.llava import image_processing_pil_llava as llava
    from transformers.models.siglip import image_processing_pil_siglip as siglip

    name = str(config.get("image_processor_type", "CLIP"))
    if name.startswith("Siglip"):
        return siglip.SiglipImageProcessorPil(**config)
    if name.startswith("Llava"):
        return llava.LlavaImageProcessorPil(**config)
    return clip.CLIPImageProcessorPil(**config)


def same(config: dict[str, Any], image: Image.Image) -> None:
    ours = ImageProcessor.from_config(config)
    got = ours(image)
    want = np.asarray(reference(config)(image)["pixel_values"][0], dtype=np.float32)
    assert got.dtype == np.float32 and got.flags.c_contiguous
    assert got.shape == (3, *ours.size)
    np.testing.assert_array_equal(got, want)  # equal bits, not nearly equal


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("size", [(640, 480), (61, 97), (30, 20), (3, 2)])
def test_every_config_equals_transformers(name: str, size: tuple[int, int]) -> None:
    same(CONFIGS[name], picture(size))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["clip", "siglip", "llava_pad"])
def test_every_size_equals_transformers(name: str, size: tuple[int, int]) -> None:
    same(CONFIGS[name], picture(size))


def lays_transparency_over_white() -> bool:
    from transformers.image_transforms import convert_to_rgb

    clear: Any = convert_to_rgb(Image.new("RGBA", (1, 1), (0, 0, 0, 0)))
    return bool(clear.getpixel((0, 0)) == (255, 255, 255))


@pytest.mark.parametrize("mode", [*MODES, "I;16"])
@pytest.mark.parametrize("name", ["clip", "siglip", "llava_pad"])
def test_every_mode_equals_transformers(name: str, mode: str) -> None:
    if mode == "RGBA" and not lays_transparency_over_white():
        pytest.skip("this transformers drops transparency; edgespec does as newer ones (5.23)")
    if mode == "I;16":
        grey = np.random.default_rng(1).integers(0, 65536, (70, 90)).astype(np.uint16)
        same(CONFIGS[name], Image.fromarray(grey))
    else:
        same(CONFIGS[name], picture((90, 70), mode))


def test_random_sizes_round_as_transformers() -> None:
    config = {**CLIP, "size": {"shortest_edge": 37}, "crop_size": 35}
    rng = np.random.default_rng(3)
    for _ in range(60):
        width, height = (int(n) for n in rng.integers(1, 120, 2))
        same(config, picture((width, height)))


def test_transparent_palette_equals_transformers() -> None:
    image = picture((40, 30), "P")
    image.info["transparency"] = 3
    same(CLIP, image)


@pytest.mark.parametrize("suffix", ["png", "webp", "bmp", "gif", "jpg"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1", "CMYK"])
def test_files_equal_transformers_loader(tmp_path: Path, suffix: str, mode: str) -> None:
    image_utils = pytest.importorskip("transformers.image_utils")
    if (suffix, mode) in {("png", "CMYK"), ("gif", "CMYK"), ("bmp", "CMYK")}:
        pytest.skip("the format has no such mode")
    image = picture((33, 21), mode)
    if suffix == "jpg" and mode in ("RGBA", "P"):
        image = image.convert("RGB")
    path = tmp_path / f"a.{suffix}"
    image.save(path)
    got = load_image(path)
    assert got.mode == "RGB"
    with Image.open(path) as opened:  # given a path, transformers leaves a GIF's file open
        want = image_utils.load_image(opened)
    np.testing.assert_array_equal(np.asarray(got), np.asarray(want))
    np.testing.assert_array_equal(np.asarray(load_image(path.read_bytes())), np.asarray(got))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_equals_transformers(tmp_path: Path, orientation: int) -> None:
    image_utils = pytest.importorskip("transformers.image_utils")
    image = picture((32, 16))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a.jpg"
    image.save(path, exif=exif)
    got = load_image(str(path))
    assert got.size == ((32, 16) if orientation < 5 else (16, 32))
    np.testing.assert_array_equal(np.asarray(got), np.asarray(image_utils.load_image(str(path))))


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    ramp = np.arange(0, 65536, 256, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    grey = np.asarray(load_image(tmp_path / "a.png"))[:, :, 0]
    np.testing.assert_array_equal(grey.ravel(), np.arange(256))
    small = Image.fromarray(np.arange(256, dtype=np.uint16).reshape(16, 16))
    np.testing.assert_array_equal(np.asarray(load_image(small))[:, :, 1].ravel(), np.arange(256))
    with pytest.raises(ImageError, match="grey values from 0 to 70000"):
        load_image(Image.fromarray(np.array([[0, 70000]], dtype=np.int32)))
    with pytest.raises(ImageError, match="floating-point"):
        load_image(Image.new("F", (2, 2)))


def test_arrays() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    np.testing.assert_array_equal(np.asarray(load_image(rgb)), rgb)
    np.testing.assert_array_equal(np.asarray(load_image(rgb[:, ::-1])), rgb[:, ::-1])
    grey = load_image(rgb[:, :, 0])
    np.testing.assert_array_equal(np.asarray(load_image(rgb[:, :, :1])), np.asarray(grey))
    assert load_image(np.zeros((4, 4, 4), np.uint8)).mode == "RGB"
    for bad in (rgb.astype(np.float32), rgb[None], rgb[:, :, :2], rgb[:0], rgb.transpose(2, 0, 1)):
        with pytest.raises(ImageError, match="uint8 of shape"):
            load_image(bad)


def test_the_callers_image_is_never_shared() -> None:
    image = picture((4, 4))
    copy = load_image(image)
    copy.putpixel((0, 0), (1, 2, 3))
    assert image.getpixel((0, 0)) != (1, 2, 3)


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP"])
def test_truncated_and_corrupt_files(form: str) -> None:
    data = encoded(picture((64, 64)), form)
    for cut in (len(data) // 2, len(data) // 4, 40, 12, 3):
        with pytest.raises(ImageError, match="corrupt|not an image"):
            load_image(data[:cut])
    rng = np.random.default_rng(0)
    for _ in range(60):  # damaged anywhere: a picture or an ImageError, nothing else
        damaged = bytearray(data)
        for place in rng.integers(0, len(data), 8):
            damaged[place] = rng.integers(0, 256)
        try:
            assert load_image(bytes(damaged)).mode == "RGB"
        except ImageError:
            pass


@pytest.mark.parametrize(
    ("form", "count"), [("GIF", 3), ("PNG", 2), ("WEBP", 4)], ids=["gif", "apng", "webp"]
)
def test_animations_are_refused_by_frame_count(form: str, count: int) -> None:
    frames = [picture((8, 8), seed=n) for n in range(count)]
    data = encoded(frames[0], form, save_all=True, append_images=frames[1:])
    with pytest.raises(ImageError, match=f"frame count {count}; extract one frame"):
        load_image(data)


def test_a_cameras_jpeg_with_a_second_picture_behind_it() -> None:
    first, second = picture((16, 16)), picture((8, 8))
    data = encoded(first, "MPO", save_all=True, append_images=[second])
    assert load_image(data).size == (16, 16)


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises width x height pixels and holds none."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + chunk + b"\0\0\0\0IDAT\0\0\0\0"


@pytest.mark.parametrize("side", [10_000, 12_000, 30_000, 2**31 - 1])
def test_bombs_are_refused_before_decoding(side: int) -> None:
    with pytest.raises(ImageError, match="limit"):  # any warning would fail the test
        load_image(png_header(side, side))


def test_limits() -> None:
    data = encoded(picture((20, 10)), "PNG")
    with pytest.raises(ImageError, match="20 x 10 = 200 pixels, more than the limit of 199"):
        load_image(data, max_pixels=199)
    with pytest.raises(ImageError, match="limit"):
        load_image(picture((20, 10)), max_pixels=199)
    with pytest.raises(ImageError, match="limit"):
        load_image(np.zeros((20, 10), np.uint8), max_pixels=199)
    with pytest.raises(ImageError, match="larger than the limit"):
        load_image(data, max_bytes=len(data) - 1)
    assert load_image(data, max_pixels=200, max_bytes=len(data)).size == (20, 10)


def test_sources_that_are_no_images(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("hello" * 50)
    encoded_tiff = encoded(picture((4, 4)), "TIFF")
    for source, words in (
        (tmp_path / "none.png", "no image file at"),
        (tmp_path, "is a directory"),
        (tmp_path / "empty.png", "is empty"),
        (b"", "is empty"),
        (tmp_path / "text.png", "not an image"),
        (encoded_tiff, "found no JPEG, PNG, WEBP, BMP, GIF"),
        ("https://example.org/a.png", "is a URL"),
        ("a\0b", "cannot read"),
        ("/dev/null", "not a regular file"),
        (42, "got int"),
        (None, "got NoneType"),
    ):
        with pytest.raises(ImageError, match=words):
            load_image(source)  # type: ignore[arg-type]


def test_extreme_strips_are_refused() -> None:
    strip = Image.new("L", (1_000_000, 1))
    with pytest.raises(ImageError, match="too long and thin"):
        ImageProcessor.from_config(CLIP)(strip)
    with pytest.raises(ImageError, match="too long to pad"):
        ImageProcessor.from_config(LLAVA)(strip)
    bounded = {**CLIP, "size": {"shortest_edge": 60, "longest_edge": 80}}
    with pytest.raises(ImageError, match="too long and thin"):
        ImageProcessor.from_config(bounded)(strip)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image_processor_type": "Qwen2VLImageProcessor"}, "Qwen2VLImageProcessor"),
        ({"image_processor_type": None}, "None"),
        ({"image_processor_type": ["x"]}, "image_processor_type"),
        ({"do_magic": True}, "do_magic"),
        ({"size_divisor": 32}, "size_divisor"),
        ({"data_format": "channels_last"}, "channels_last"),
        ({"do_pad": True}, "do_pad"),
        ({"do_resize": 1}, "do_resize"),
        ({"do_center_crop": False}, "fixed size"),
        ({**SIGLIP, "size": 77}, "fixed size"),  # Hugging Face reads it as the shortest edge
        ({"size": {"longest_edge": 5}}, "size"),
        ({"size": {"shortest_edge": 5, "height": 3}}, "size"),
        ({"size": {"shortest_edge": "5"}}, "shortest_edge"),
        ({"crop_size": {"height": 0, "width": 3}}, "crop_size.height"),
        ({"crop_size": "big"}, "crop_size"),
        ({"resample": 9}, "resample"),
        ({"image_mean": [0.1, 0.2]}, "image_mean"),
        ({"image_std": [0.1, 0.0, 0.2]}, "image_std"),
        ({"rescale_factor": float("nan")}, "rescale_factor"),
    ],
)
def test_configs_that_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        ImageProcessor.from_config({**CLIP, **change})


def test_configs_that_are_read() -> None:
    plain = ImageProcessor.from_config(CLIP)
    assert plain.size == (224, 224)
    nested = {"processor_class": "LlavaProcessor", "patch_size": 14, "image_processor": CLIP}
    assert ImageProcessor.from_config(nested) == plain
    harmless = {"do_magic": False, "thing": None, "processor_class": "X", "use_fast": True}
    assert ImageProcessor.from_config({**CLIP, **harmless}) == plain
    padded = ImageProcessor.from_config({**LLAVA, "do_center_crop": False})
    assert padded.size == (224, 224)
    assert padded(picture((9, 5))).shape == (3, 224, 224)
    with pytest.raises(ImageError, match="mode L"):
        ImageProcessor.from_config({**CLIP, "do_convert_rgb": False})(picture((4, 4), "L"))


def test_saved_config_round_trip(tmp_path: Path) -> None:
    import json

    for name, config in CONFIGS.items():
        reference(config).save_pretrained(tmp_path / name)
        saved = json.loads((tmp_path / name / "preprocessor_config.json").read_text())
        assert ImageProcessor.from_config(saved) == ImageProcessor.from_config(config)


def test_preprocess(tmp_path: Path) -> None:
    processor = ImageProcessor.from_config(SIGLIP)
    picture((30, 20)).save(tmp_path / "a.png")
    batch = preprocess([tmp_path / "a.png", picture((9, 9))], processor)
    assert batch.shape == (2, 3, 224, 224) and batch.dtype == np.float32
    np.testing.assert_array_equal(batch[1], processor(picture((9, 9))))
    assert preprocess([], processor).shape == (0, 3, 224, 224)


def test_import_is_lean() -> None:
    code = (
        "import sys, edgespec_runtime.vision, edgespec_runtime.prompt, edgespec_runtime.text\n"
        "print([m for m in ('PIL', 'tokenizers', 'jinja2', 'torch') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
