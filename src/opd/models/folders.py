"""Folders of models and of adapters, as their libraries save them. Nothing here imports torch."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

ADAPTER = "adapter_config.json"
"""File name by which a folder or hub repository is recognised as an adapter."""

MODEL_SUFFIXES = frozenset({".safetensors", ".bin", ".json", ".jinja", ".model", ".txt"})

NOT_THE_MODEL = frozenset(
    {"run.json", "result.json", "provenance.json", "wandb.json", "context.txt", "files.json", "stage.json"}
)
"""JSON and text files of a run's folder or a checkpoint that are not part of the model."""


def model_files(folder: Path) -> list[Path]:
    """Files with weights, configuration and tokenizer; of a diffusers pipeline those of all components."""
    index = folder / "model_index.json"
    components = [folder / name for name in json.loads(index.read_text())] if index.is_file() else []
    return sorted(
        path
        for place in (folder, *(component for component in components if component.is_dir()))
        for path in place.iterdir()
        if path.is_file()
        and path.suffix in MODEL_SUFFIXES
        and path.name not in NOT_THE_MODEL
        and not path.name.startswith(".")
    )


def file_in(path: str, name: str) -> Path | None:
    """A file of a folder or hub repository; None if it is not there or the hub cannot be reached."""
    folder = Path(path)
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    return _from_hub(path, name)


@cache
def _from_hub(path: str, name: str) -> Path | None:
    """Asked once: a hub that cannot be reached takes half a minute to say so."""
    from transformers.utils import cached_file

    try:
        found = cached_file(
            path,
            name,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    except (OSError, ValueError):  # no path and no id; loading it says so
        return None
    return Path(found) if found else None


def adapter_config(path: str) -> dict[str, Any] | None:
    """The settings of an adapter; None for the folder or id of a whole model."""
    file = file_in(path, ADAPTER)
    if file is None:
        return None
    try:
        settings = json.loads(file.read_text())
    except ValueError:
        settings = None
    return settings if isinstance(settings, dict) else {}


def base_of(path: str) -> str | None:
    """The path or id of the whole model: an adapter's base, otherwise the model itself.

    None if an adapter does not name its base.
    """
    settings = adapter_config(path)
    if settings is None:
        return path
    return settings.get("base_model_name_or_path") or None
