"""``provenance.json``: the run's id, and the versions, hardware and digest of the data that it was made with."""

from __future__ import annotations

import hashlib
import json
import math
import platform
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import Field, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from opd.errors import CheckpointError
from opd.output.run_folder import write_json
from opd.types import Prompt

FILE = "provenance.json"

PACKAGES = ("opd", "torch", "transformers", "peft", "diffusers")
"""Packages whose version decides the last bits of a run."""

TOKENIZER = "tokenizer"
"""End of the key of a tokenizer's label, beside those of weights."""

CPUINFO = Path("/proc/cpuinfo")


NOISE = 5e-2
"""Largest relative difference between two readings of one sequence with the same weights in 16 bits."""

Label = str | list[float]
"""What tells weights from others: a hash, or states that they compute where a server tells no more."""


def note(
    out: Path, data: Mapping[str, Sequence[Prompt]], models: Mapping[str, Label], device: str, *, resumed: bool
) -> list[str]:
    """Write what this process runs with, and compare it with what the run was started with.

    Args:
        data: the loaded prompts by the run file's key.
        models: labels of the loaded weights and of tokenizers by the run file's key.
        device: of the run, such as ``cpu`` or ``cuda:1``.
        resumed: whether the folder's run goes on.

    Returns:
        A sentence for each change of a version or of the hardware.

    Raises:
        CheckpointError: the run goes on with other data or models, or with the same data in another order, or the file
            is damaged.
    """
    now = {"versions": dict(_versions()), "hardware": _hardware(device)}
    digests = {key: _digest(prompts) for key, prompts in data.items() if prompts}
    path, changes = out / FILE, []
    run = uuid.uuid4().hex
    if resumed:
        saved = _read(path)
        run, last = saved["run"], saved["processes"][-1]
        _check_data(saved["data"], digests, out)
        _check_models(saved.get("models", models), models, out)
        changes = [text for kind in now for text in _differences(last.get(kind, {}), now[kind])]
        processes = [*saved["processes"], now] if changes else saved["processes"]
    else:
        processes = [now]
    write_json(path, {"run": run, "processes": processes, "data": digests, "models": dict(models)})
    return changes


def run_id(out: Path) -> str:
    """The id of the run in a folder, which its checkpoints bear too; ``note`` has written it."""
    return str(_read(out / FILE)["run"])


def facts(out: Path) -> Iterator[str]:
    """The lines of the model card."""
    path = out / FILE
    if not path.is_file():
        return
    saved = json.loads(path.read_text())
    last = saved["processes"][-1]
    yield "Versions: " + ", ".join(f"{name} {number}" for name, number in last["versions"].items())
    yield "Hardware: " + ", ".join(str(value) for value in last["hardware"].values())
    for key, digest in saved["data"].items():
        yield f"Data of `{key}`: {digest['rows']} rows, sha256 `{digest['sha256']}`"


def _read(path: Path) -> dict[str, Any]:
    try:
        if not path.is_file():  # but a pipe, say, which would never end
            raise FileNotFoundError
        saved: dict[str, Any] = json.loads(path.read_text())
        digests, last = saved["data"].values(), saved["processes"][-1]
        whole = isinstance(saved["run"], str) and all(
            {"rows", "sha256", "any_order"} <= each.keys() for each in digests
        )
        whole = whole and all(isinstance(last[kind], dict) for kind in ("versions", "hardware"))
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        whole = False
    if not whole:
        raise CheckpointError(
            f"'{path}' is missing or damaged, so data and checkpoints cannot be compared with it. Fix: restore the "
            "file from a copy, or choose another out"
        )
    return saved


def _check_data(before: Mapping[str, Any], now: Mapping[str, Any], out: Path) -> None:
    for key in {**before, **now}:
        old, new = before.get(key), now.get(key)
        if old == new:
            continue
        if old is None or new is None or old["rows"] != new["rows"]:
            counts = [digest["rows"] if digest else 0 for digest in (old, new)]
            how = f"'{out}' was started with {counts[0]} rows, and there are {counts[1]} now"
        elif old["any_order"] == new["any_order"]:
            how = f"the rows are in another order than when '{out}' was started"
        else:
            how = f"rows were changed after '{out}' was started"
        raise CheckpointError(
            f"{key}: {how}, so the run would not be the same. Fix: restore the data, or choose another out"
        )


def _check_models(before: Mapping[str, Label], now: Mapping[str, Label], out: Path) -> None:
    for key in before.keys() & now.keys():
        if not _same(before[key], now[key]):
            raise CheckpointError(
                f"{_whose(key)} are not those that '{out}' was started with, so the run would not be the same. "
                "Fix: load or serve the model as it was, or choose another out"
            )


def _whose(key: str) -> str:
    owner = key.removesuffix(f".{TOKENIZER}")
    return f"{key}: its weights" if owner == key else f"{owner}: its tokens or chat template"


def _same(old: Label, new: Label) -> bool:
    if isinstance(old, str) or isinstance(new, str) or len(old) != len(new):
        return old == new
    return math.dist(old, new) <= NOISE * math.hypot(*old)


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for name in {**before, **now}:
        old, new = before.get(name), now.get(name)
        if old != new:
            yield f"{name} was {old or 'absent'} and is {new or 'absent'}, so the last bits of the weights may differ"


def _versions() -> Iterator[tuple[str, str]]:
    yield "python", platform.python_version()
    for name in PACKAGES:
        try:
            yield name, version(name)
        except PackageNotFoundError:  # an extra, or opd on the path without being installed
            continue


def _hardware(device: str) -> dict[str, Any]:
    import torch

    if device.startswith("cuda"):
        return {"device": torch.cuda.get_device_name(device), "devices": torch.cuda.device_count()}
    return {"device": _cpu() if device == "cpu" else device}


def _cpu() -> str:
    """The processor's name."""
    lines = CPUINFO.read_text().splitlines() if CPUINFO.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _digest(prompts: Sequence[Prompt]) -> dict[str, Any]:
    """Number of rows, and sha256 of their content in order and in any order.

    The second leaves the ids out: a row without an id is named by its place.
    """
    rows = [_content(prompt, fields(prompt)) for prompt in prompts]
    unnamed = [_content(prompt, [f for f in fields(prompt) if f.name != "id"]) for prompt in prompts]
    return {
        "rows": len(rows),
        "sha256": hashlib.sha256(b"".join(rows)).hexdigest(),
        "any_order": hashlib.sha256(b"".join(sorted(unnamed))).hexdigest(),
    }


def _content(prompt: Prompt, chosen: Sequence[Field[Any]]) -> bytes:
    tree = {field.name: getattr(prompt, field.name) for field in chosen}
    return hashlib.sha256(json.dumps(tree, sort_keys=True, default=_stable).encode()).digest()


def _stable(value: Any) -> Any:
    """What stands for a value that JSON has no form for: its content if there is a way to it, otherwise its type."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=repr)
    if hasattr(value, "numpy"):
        value = value.numpy(force=True)
    if hasattr(value, "tobytes"):
        return hashlib.sha256(value.tobytes()).hexdigest()
    return value.hex() if isinstance(value, bytes) else f"{type(value).__module__}.{type(value).__qualname__}"
