"""The sample images in a denoising run's folder. No torch here.

samples/000020.png   images of the student after 20 steps: one row, a column per prompt
samples/teacher.png  images of the teachers from the same noise
samples/shown.png    images of training prompts that are part of the teacher's input
samples/samples.json the prompts of the columns
samples/overview.png images before, during and after training and of the teacher, below each other
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opd.errors import DataError
from opd.output.run_folder import write_json
from opd.report.files import read_json

SAMPLES = "samples"
"""In the run's folder."""

GAP = 2
"""White pixels around each image of a strip."""

TEACHER = "teacher"
SHOWN = "shown"
INDEX = "samples.json"

Column = dict[str, str]
"""A prompt's ``text`` and ``domain``."""


@dataclass(frozen=True)
class Samples:
    """The folder ``samples`` of a run. A strip's name is its step, ``teacher`` or ``shown``."""

    folder: Path

    def path(self, name: int | str) -> Path:
        """Path of a strip."""
        return self.folder / (f"{name:06d}.png" if isinstance(name, int) else f"{name}.png")

    def has(self, name: int | str) -> bool:
        """Whether the strip exists."""
        return self.path(name).is_file()

    @property
    def steps(self) -> list[int]:
        """Steps of the student's strips, in order."""
        return sorted(int(path.stem) for path in self.folder.glob("*.png") if path.stem.isdecimal())

    def forget(self, step: int) -> None:
        """Delete strips after this step; below 0, all strips."""
        for late in [s for s in self.steps if s > step]:
            self.path(late).unlink()
        for name in (TEACHER, SHOWN) if step < 0 else ():
            self.path(name).unlink(missing_ok=True)

    def describe(self, columns: Sequence[Column], shown: Sequence[Column]) -> None:
        """Write the prompts of the strips' columns."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / INDEX, {"prompts": list(columns), "shown": list(shown)})

    @property
    def prompts(self) -> list[Column]:
        """Columns of the student's and the teachers' strips."""
        return self._index("prompts")

    @property
    def shown(self) -> list[Column]:
        """Columns of the strip with images from the teacher's input."""
        return self._index("shown")

    def _index(self, key: str) -> list[Column]:
        path = self.folder / INDEX
        found = (read_json(path) or {}).get(key, [])
        if not isinstance(found, list) or not all(_is_column(column) for column in found):
            raise DataError(f"'{path}' is damaged ('{key}' is no list of prompts). Fix: delete '{path.parent}'")
        return found

    def write(self, name: int | str, image: Any) -> None:
        """Write a PIL image as a PNG file, atomically."""
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / f".{self.path(name).name}"
        image.save(partial, format="PNG")
        partial.replace(self.path(name))

    def images(self, name: int | str) -> list[Any]:
        """The PIL images of a strip by column; empty without the strip.

        Raises:
            DataError: the file is no strip of this many columns.
        """
        if not self.has(name):
            return []
        image, columns = opened(self.path(name)), len(self.shown if name == SHOWN else self.prompts)
        wide, rest = divmod(image.width - GAP, max(columns, 1))
        if rest or not columns or wide <= GAP or image.height <= 2 * GAP:
            raise DataError(
                f"'{self.path(name)}' is no row of {columns} images as a run writes them. Fix: delete the file"
            )
        starts = [GAP + column * wide for column in range(columns)]
        return [image.crop((x, GAP, x + wide - GAP, image.height - GAP)) for x in starts]


def _is_column(column: object) -> bool:
    return isinstance(column, dict) and all(isinstance(column.get(key), str) for key in ("text", "domain"))


def opened(path: Path) -> Any:
    """An image file as a PIL image in RGB.

    Raises:
        DataError: the file cannot be read, or Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError:
        raise DataError(f"'{path}' is an image, and Pillow is missing. Fix: pip install 'opd[diffusion]'") from None
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, ValueError) as error:
        raise DataError(f"'{path}' cannot be read as an image ({error}). Fix: delete the file") from None
