"""Fingerprints of stages, and the folders of stages that are out of date.

out/NAME/.started.json  settings and inputs, written before the stage starts
out/NAME/stage.json     the same with the digest of every model file, of itself, and the result, written last
out/.superseded/NAME-1  a former folder of the stage, moved there after its settings or inputs changed
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from opd.config.run import MAY_CHANGE
from opd.data.strict_json import parse
from opd.errors import CheckpointError, ConfigError
from opd.models.bundled import resolve
from opd.models.folders import ADAPTER, base_of, model_files
from opd.models.sealed import digest
from opd.output.run_folder import finite, is_empty, leaves, locked, write_json
from opd.pipelines.graph import Stage

STARTED, FINISHED, SUPERSEDED = ".started.json", "stage.json", ".superseded"


def mark(stage: Stage, inputs: Mapping[str, str]) -> dict[str, Any]:
    """Settings, inputs and their fingerprint; a stage runs again if it differs. User code is not part of it.

    Args:
        inputs: digest of each input by reference, path or id.
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
    """The first difference of two marks, as a sentence."""
    was, now = dict(leaves(old["settings"])), dict(leaves(new["settings"]))
    for key in [*now, *was]:
        if was.get(key) != now.get(key):
            return f"{key} was {was.get(key)} and is {now.get(key)}"
    changed = [name for name in new["inputs"] if old["inputs"].get(name) != new["inputs"][name]]
    return f"'{changed[0]}' has changed" if changed else "it was another kind of stage"


def outputs(folder: Path) -> dict[str, str]:
    """Digests of the model files in a folder."""
    return _digests(folder, model_files(folder))


def output_digest(record: Mapping[str, Any]) -> str:
    """One digest over all files of a finished stage."""
    return _hash(record["outputs"])


def outside_digest(name: str) -> str | None:
    """Digest of a model folder, an adapter with its base, a file or a data folder; None for an id not on this disk."""
    path = Path(resolve(name))
    if path.is_file():
        return digest(path)
    if not path.is_dir():
        return None
    if (path / ADAPTER).is_file():
        base = base_of(str(path))
        return _hash({"adapter": outputs(path), "base": outside_digest(base) if base else None})
    if (path / "config.json").is_file():
        return _hash(outputs(path))
    return _hash({str(p.relative_to(path)): digest(p) for p in sorted(path.rglob("*")) if p.is_file()})


def read(path: Path) -> dict[str, Any] | None:
    """The content of .started.json or stage.json; None without the file.

    Raises:
        CheckpointError: the file has another content, or stage.json was changed.
    """
    try:
        found = parse(path.read_bytes())
        if path.name == FINISHED and found.pop("seal") != _hash(found):
            raise ValueError
        return found if isinstance(found["fingerprint"], str) and isinstance(found["inputs"], dict) else None
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(
            f"'{path}' was changed or was not written by opd. Fix: delete '{path.parent}' to run the stage again"
        ) from None


def check(stage: Stage, folder: Path) -> None:
    """Refuse a folder that is in use, has foreign files, or whose model files were edited.

    Raises:
        ConfigError: the folder is in use or has foreign files.
        CheckpointError: a model file was edited or deleted.
    """
    if not folder.exists():
        return
    if not folder.is_dir() or not (is_empty(folder) or any((folder / f).exists() for f in (STARTED, FINISHED))):
        raise ConfigError(
            f"out: '{folder}' has files that are not of stage '{stage.name}'. Fix: rename the stage or move the folder"
        )
    with locked(folder):  # waits until the worker of a killed start has ended
        record = read(folder / FINISHED)
    for name, expected in record["outputs"].items() if record else ():
        path = folder / name
        if not path.is_file() or digest(path) != expected:
            change = "was edited" if path.is_file() else "was deleted"
            raise CheckpointError(
                f"'{path}' {change} after stage '{stage.name}' had finished. Fix: delete '{folder}' to run the stage "
                "again, or move the folder and name its new path as a model"
            )


def supersede(out: Path, name: str) -> Path:
    """Move a stage's folder to ``.superseded`` and return its new path."""
    with locked(out / name):
        aside = out / SUPERSEDED
        aside.mkdir(exist_ok=True)
        taken = [int(p.name.rpartition("-")[2]) for p in aside.glob(f"{name}-[0-9]*") if _is_number(p.name, name)]
        target = aside / f"{name}-{max(taken, default=0) + 1}"
        (out / name).rename(target)
    return target


def finish(folder: Path, started: Mapping[str, Any], result: Mapping[str, Any], files: Iterable[Path]) -> None:
    """Write stage.json, the last file of a stage."""
    record = finite({**started, "outputs": _digests(folder, files), "result": dict(result)})
    write_json(folder / FINISHED, {**record, "seal": _hash(record)})


def _digests(folder: Path, files: Iterable[Path]) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): digest(path) for path in files}


def _is_number(folder: str, name: str) -> bool:
    return folder.removeprefix(f"{name}-").isdigit()


def _hash(tree: Any) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()
