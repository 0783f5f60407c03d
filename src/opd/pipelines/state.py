"""What a stage was made from and what it left: fingerprints, and what becomes of a folder that is out of date.

out/NAME/.started.json  settings and inputs, written before the stage begins
out/NAME/stage.json     the same, the digest of every file a model consists of, and the figures; written last
out/.superseded/NAME-1  a folder whose settings or inputs have changed since
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from opd.config.run import MAY_CHANGE
from opd.errors import CheckpointError, ConfigError
from opd.models.bundled import resolve
from opd.output.run_folder import is_empty, locked, write_json
from opd.pipelines.graph import Stage

STARTED, FINISHED, SUPERSEDED = ".started.json", "stage.json", ".superseded"

MODEL_SUFFIXES = frozenset({".safetensors", ".bin", ".json", ".jinja", ".model", ".txt"})

NOT_THE_MODEL = frozenset({"run.json", "result.json", "context.txt", FINISHED})
"""Files of a run's folder that no model is loaded from."""


def mark(stage: Stage, inputs: Mapping[str, str]) -> dict[str, Any]:
    """What decides whether a stage has to run again: settings and inputs, not the code of a task of your own.

    Args:
        inputs: by reference, path or id, the digest of what lies there.
    """
    settings = {k: v for k, v in stage.settings.items() if k not in MAY_CHANGE}
    return {
        "stage": stage.name,
        "kind": stage.kind,
        "fingerprint": _hash({"kind": stage.kind, "settings": settings, "inputs": dict(inputs)}),
        "settings": settings,
        "inputs": dict(inputs),
    }


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The first thing in which two marks differ, for people."""
    was, now = dict(_leaves(old["settings"])), dict(_leaves(new["settings"]))
    for key in [*now, *was]:
        if was.get(key) != now.get(key):
            return f"{key} was {was.get(key)} and is {now.get(key)}"
    changed = [name for name in new["inputs"] if old["inputs"].get(name) != new["inputs"][name]]
    return f"'{changed[0]}' has changed" if changed else "it was another kind of stage"


def outputs(folder: Path) -> dict[str, str]:
    """Digests of the files that a model in this folder consists of."""
    return _digests(folder, model_files(folder))


def model_files(folder: Path) -> list[Path]:
    """Weights, configuration and tokenizer; of a diffusers pipeline those of all its parts."""
    index = folder / "model_index.json"
    parts = [folder / name for name in json.loads(index.read_text())] if index.is_file() else []
    return sorted(
        path
        for place in (folder, *(part for part in parts if part.is_dir()))
        for path in place.iterdir()
        if path.is_file()
        and path.suffix in MODEL_SUFFIXES
        and path.name not in NOT_THE_MODEL
        and not path.name.startswith(".")
    )


def output_digest(record: Mapping[str, Any]) -> str:
    """One digest of everything a finished stage left."""
    return _hash(record["outputs"])


def outside_digest(name: str) -> str | None:
    """Of a model's folder, a file or a folder of data; None for an id that is not on this disk."""
    path = Path(resolve(name))
    if path.is_file():
        return digest(path)
    if not path.is_dir():
        return None
    if (path / "config.json").is_file():
        return _hash(outputs(path))
    return _hash({str(p.relative_to(path)): digest(p) for p in sorted(path.rglob("*")) if p.is_file()})


def digest(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read(path: Path) -> dict[str, Any] | None:
    """A file of this module's; None if it is not there.

    Raises:
        CheckpointError: it is something else.
    """
    try:
        found = json.loads(path.read_text())
        return found if isinstance(found["fingerprint"], str) and isinstance(found["inputs"], dict) else None
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        raise CheckpointError(
            f"'{path}' was not written by opd; delete '{path.parent}' to run the stage again"
        ) from None


def check(stage: Stage, folder: Path) -> None:
    """Refuse a folder that somebody writes into, that holds something else, or that was edited by hand.

    Raises:
        ConfigError, CheckpointError: one sentence with the folder or file and the mend.
    """
    if not folder.exists():
        return
    if not folder.is_dir() or not (is_empty(folder) or any((folder / f).exists() for f in (STARTED, FINISHED))):
        raise ConfigError(
            f"out: '{folder}' holds something else than stage '{stage.name}'; rename the stage or move it"
        )
    with locked(folder):  # until the workers of a killed start are gone
        record = read(folder / FINISHED)
    for name, expected in record["outputs"].items() if record else ():
        path = folder / name
        if not path.is_file() or digest(path) != expected:
            what = "was edited" if path.is_file() else "was deleted"
            raise CheckpointError(
                f"'{path}' {what} after stage '{stage.name}' had finished; delete '{folder}' to run the stage again, "
                "or move it elsewhere and name it there as a model of your own"
            )


def supersede(out: Path, name: str) -> Path:
    """Move a stage's folder aside; nothing is lost."""
    with locked(out / name):
        aside = out / SUPERSEDED
        aside.mkdir(exist_ok=True)
        taken = [int(p.name.rpartition("-")[2]) for p in aside.glob(f"{name}-[0-9]*") if _is_number(p.name, name)]
        target = aside / f"{name}-{max(taken, default=0) + 1}"
        (out / name).rename(target)
    return target


def finish(folder: Path, started: Mapping[str, Any], result: Mapping[str, Any], files: Iterable[Path]) -> None:
    """Write stage.json, the last thing a stage does."""
    write_json(folder / FINISHED, {**started, "outputs": _digests(folder, files), "result": dict(result)})


def _digests(folder: Path, files: Iterable[Path]) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): digest(path) for path in files}


def _is_number(folder: str, name: str) -> bool:
    return folder.removeprefix(f"{name}-").isdigit()


def _leaves(tree: Any, key: str = "") -> Iterable[tuple[str, Any]]:
    if isinstance(tree, Mapping) and tree:
        for inner, value in tree.items():
            yield from _leaves(value, f"{key}.{inner}" if key else inner)
    else:
        yield key, tree


def _hash(tree: Any) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()
