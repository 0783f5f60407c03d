"""The images of prompts, image files, and grids of images."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from opd.errors import DataError
from opd.types import Prompt


def image_of(prompt: Prompt) -> Tensor | None:
    """A prompt's own image, float32 [3, H, W] in [−1, 1]; None if it has none.

    ``data["image"]`` is a path, a PIL image as in datasets, or such a tensor.

    Raises:
        DataError: it has another type, or cannot be read.
    """
    image = prompt.data.get("image")
    if image is None or isinstance(image, Tensor):
        return image
    if isinstance(image, str):
        try:
            return read_image(image)
        except (OSError, ValueError) as error:
            raise DataError(
                f"prompts: cannot read 'image' of prompt '{prompt.id}', '{image}': {error}. Fix: correct the path"
            ) from None
    if isinstance(image, Image.Image):
        return to_tensor(image)
    raise DataError(
        f"prompts: 'image' of prompt '{prompt.id}' is a {type(image).__name__}. Fix: give a file's path or an image"
    )


@lru_cache(maxsize=4096)
def read_image(path: str) -> Tensor:
    """The image in a file, float32 [3, H, W] in [−1, 1]."""
    with Image.open(path) as image:
        return to_tensor(image)


def to_tensor(image: Any) -> Tensor:
    """A PIL image as float32 [3, H, W] in [−1, 1]."""
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    return torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1


def to_pixels(image_X: Tensor) -> Any:
    """uint8 [H, W, 3] of an image [3, H, W] in [−1, 1]; values outside are clamped."""
    scaled = (image_X.float().nan_to_num(0.0).clamp(-1, 1) + 1) * 127.5
    return scaled.round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()


def save(image_X: Tensor, path: Path) -> None:
    """Write an image as a PNG file."""
    Image.fromarray(to_pixels(image_X)).save(path)


def grid(rows: Sequence[Sequence[Tensor]], *, scale: int = 1, gap: int = 2) -> Any:
    """Rows of equally large images as one PIL image on white.

    Args:
        rows: of [3, H, W] in [−1, 1].
        scale: enlarge every pixel to a square of this side, for small images.
        gap: pixels between them.
    """
    _, height, width = rows[0][0].shape
    high, wide = height * scale + gap, width * scale + gap
    sheet = np.full((high * len(rows) + gap, wide * max(map(len, rows)) + gap, 3), 255, dtype=np.uint8)
    for r, row in enumerate(rows):
        for c, image in enumerate(row):
            pixels = np.kron(to_pixels(image), np.ones((scale, scale, 1), dtype=np.uint8))
            sheet[gap + r * high :, gap + c * wide :][: height * scale, : width * scale] = pixels
    return Image.fromarray(sheet)
