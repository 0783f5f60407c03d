"""Random damages to the checkpoints of a run, by seed."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path


def damage(checkpoints: Path, foreign: Path, seed: int) -> str:
    """Do one to three random damages to a folder of checkpoints, most often to the newest.

    Args:
        foreign: the checkpoints of another run of the same model, at the same steps.

    Returns:
        The damages, for the message of a test.
    """
    rng = random.Random(seed)
    done = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        folders = sorted(path for path in checkpoints.iterdir() if path.is_dir())
        if not folders:
            break
        numbers = [path for path in folders if path.name.isdecimal()]
        folder = numbers[-1] if numbers and rng.random() < 0.6 else rng.choice(folders)
        kind = rng.choice(KINDS)
        kind(folder, foreign, rng)
        done.append(f"{kind.__name__} in {folder.name}")
    return f"seed {seed}: {', '.join(done)}"


def _any(folder: Path, rng: random.Random) -> Path:
    files = sorted(path for path in folder.iterdir() if path.is_file())
    if not files:
        (folder / "state.json").touch()
        files = [folder / "state.json"]
    return rng.choice(files)


def flip(folder: Path, foreign: Path, rng: random.Random) -> None:
    path = _any(folder, rng)
    content = bytearray(path.read_bytes())
    if content:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)


def truncate(folder: Path, foreign: Path, rng: random.Random) -> None:
    path = _any(folder, rng)
    content = path.read_bytes()
    path.write_bytes(content[: rng.randrange(max(len(content), 1))])


def empty(folder: Path, foreign: Path, rng: random.Random) -> None:
    _any(folder, rng).write_bytes(b"")


def delete(folder: Path, foreign: Path, rng: random.Random) -> None:
    _any(folder, rng).unlink()


def delete_folder(folder: Path, foreign: Path, rng: random.Random) -> None:
    shutil.rmtree(folder)


def swap(folder: Path, foreign: Path, rng: random.Random) -> None:
    """Two files of a folder, or the same file of two folders."""
    one = _any(folder, rng)
    others = [path / one.name for path in folder.parent.iterdir() if path != folder and (path / one.name).is_file()]
    other = rng.choice(sorted(others)) if others and rng.random() < 0.6 else _any(folder, rng)
    _exchange(one, other)


def swap_folders(folder: Path, foreign: Path, rng: random.Random) -> None:
    _exchange(folder, rng.choice(sorted(path for path in folder.parent.iterdir() if path.is_dir())))


def foreign_file(folder: Path, foreign: Path, rng: random.Random) -> None:
    """A file of another run in the place of the own one, or beside the own ones."""
    theirs = _any(foreign / "000006", rng)
    shutil.copy(theirs, folder / rng.choice((theirs.name, "model.safetensors.index.json", "notes.txt")))


def foreign_checkpoint(folder: Path, foreign: Path, rng: random.Random) -> None:
    shutil.rmtree(folder)
    same = foreign / folder.name
    shutil.copytree(same if same.is_dir() else foreign / "000006", folder)


def a_file_instead(folder: Path, foreign: Path, rng: random.Random) -> None:
    shutil.rmtree(folder)
    folder.write_text("{}")


def _exchange(one: Path, other: Path) -> None:
    if one != other:
        aside = one.with_name(".aside")
        one.rename(aside)
        other.rename(one)
        aside.rename(other)


Damage = Callable[[Path, Path, random.Random], None]

KINDS: tuple[Damage, ...] = (
    flip,
    flip,
    truncate,
    empty,
    delete,
    delete_folder,
    swap,
    swap_folders,
    foreign_file,
    foreign_checkpoint,
    a_file_instead,
)
