"""The sample images in a denoising run's folder. No torch here.

samples/000020.png   what the student drew after 20 steps: one row, a column per prompt
samples/teacher.png  what the teachers drew from the same noise
samples/shown.png    images of training prompts that the teacher sees beside them
samples/samples.json the prompts of the columns
samples/overview.png before, in between, after and the teacher, one under the other
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opd.errors import DataError
from opd.output.run_folder import write_json

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
    """The folder ``samples`` of a run; strips are named by their step, ``teacher`` or ``shown``."""

    folder: Path

    def path(self, name: int | str) -> Path:
        """Where a strip lies, or is to lie."""
        return self.folder / (f"{name:06d}.png" if isinstance(name, int) else f"{name}.png")

    def has(self, name: int | str) -> bool:
        """Whether there is such a strip."""
        return self.path(name).is_file()

    @property
    def steps(self) -> list[int]:
        """Steps after which the student drew, in order."""
        return sorted(int(path.stem) for path in self.folder.glob("*.png") if path.stem.isdecimal())

    def forget(self, step: int) -> None:
        """Drop what was drawn after this step; below 0 everything."""
        for late in [s for s in self.steps if s > step]:
            self.path(late).unlink()
        for name in (TEACHER, SHOWN) if step < 0 else ():
            self.path(name).unlink(missing_ok=True)

    def describe(self, columns: Sequence[Column], shown: Sequence[Column]) -> None:
        """Write down whose images the strips' columns are."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / INDEX, {"prompts": list(columns), "shown": list(shown)})

    @property
    def prompts(self) -> list[Column]:
        """Of the student's and the teachers' strips."""
        return self._index("prompts")

    @property
    def shown(self) -> list[Column]:
        """Of the strip of images that the teacher sees."""
        return self._index("shown")

    def _index(self, key: str) -> list[Column]:
        path = self.folder / INDEX
        found: list[Column] = json.loads(path.read_text(encoding="utf-8"))[key] if path.is_file() else []
        return found

    def write(self, name: int | str, image: Any) -> None:
        """Keep a PIL image as a PNG file, whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / f".{self.path(name).name}"
        image.save(partial, format="PNG")
        partial.replace(self.path(name))

    def images(self, name: int | str) -> list[Any]:
        """The PIL images in a strip, by column; none where there is no such strip.

        Raises:
            DataError: the file is no such strip.
        """
        if not self.has(name):
            return []
        image, columns = opened(self.path(name)), len(self.shown if name == SHOWN else self.prompts)
        wide, rest = divmod(image.width - GAP, max(columns, 1))
        if rest or not columns or wide <= GAP or image.height <= 2 * GAP:
            raise DataError(
                f"'{self.path(name)}' is no row of {columns} images as a run draws them; delete it, or the folder"
            )
        starts = [GAP + column * wide for column in range(columns)]
        return [image.crop((x, GAP, x + wide - GAP, image.height - GAP)) for x in starts]


def opened(path: Path) -> Any:
    """A image file as a PIL image in RGB.

    Raises:
        DataError: it cannot be read, or Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError:
        raise DataError(f"'{path}' is a image; to show it, run pip install 'opd[diffusion]'") from None
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read the image '{path}': {error}; delete it") from None
