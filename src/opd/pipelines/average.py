"""Weight averaging: the baseline for distillation from several models."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from opd.errors import ModelError
from opd.models.bundled import resolve
from opd.models.folders import base_of
from opd.models.sealed import seal_model

MAY_LACK = ("lm_head.weight", "inv_freq")
"""Suffixes of optional tensors: tied heads and buffers, which not every file of an architecture has."""


def check_shapes(models: Mapping[str, str], *, key: str) -> None:
    """Refuse models whose tensor shapes differ. Models that are not on this disk are not checked.

    Args:
        models: folder or id by display name.
        key: the settings key, for the error.

    Raises:
        ModelError: two models differ.
    """
    known = {name: shapes for name, model in models.items() if (shapes := _shapes(model))}
    for (one, ours), (other, theirs) in pairwise(known.items()):
        _compare(one, ours, other, theirs, key)


def average(models: Mapping[str, str], weights: Sequence[float] | None, out: Path, *, key: str) -> None:
    """Write Σ wᵢ θᵢ, summed in float32, with the first model's configuration, dtype and tokenizer.

    An adapter is merged into its base first: the mean of products is not the product of means.

    Args:
        models: folder or id by display name.
        weights: one per model; None for equal weights.
        out: folder to write.
        key: the settings key, for errors.

    Raises:
        ModelError: a model cannot be loaded, or two models differ in shapes or vocabulary.
    """
    import torch

    from opd.models.loading import load_whole

    (first, path), *others = models.items()
    share = list(weights) if weights is not None else [1 / len(models)] * len(models)
    mean = load_whole(path, key=key)
    ours = dict(mean.model.named_parameters())
    with torch.no_grad():
        for parameter in ours.values():
            parameter.mul_(share[0])
        for (name, folder), weight in zip(others, share[1:], strict=True):
            model = load_whole(folder, key=key)
            theirs = dict(model.model.named_parameters())
            _compare(first, {n: list(p.shape) for n, p in ours.items()}, name, _sizes(theirs), key)
            if model.tokenizer.get_vocab() != mean.tokenizer.get_vocab():
                raise ModelError(
                    f"{key}: '{first}' and '{name}' have different vocabularies. Fix: name models of one vocabulary"
                )
            for parameter_name, parameter in ours.items():
                parameter.add_(theirs[parameter_name], alpha=weight)
    out.mkdir(parents=True, exist_ok=True)
    mean.save(out)
    seal_model(out)
    parts = " + ".join(f"{weight:g} × {name}" for name, weight in zip(models, share, strict=True))
    (out / "README.md").write_text(f"---\nlibrary_name: transformers\ntags: [opd, merge]\n---\n# {parts}\n")


def _sizes(parameters: Mapping[str, object]) -> dict[str, list[int]]:
    return {name: list(p.shape) for name, p in parameters.items()}  # type: ignore[attr-defined]


def _compare(
    one: str, ours: Mapping[str, Sequence[int]], other: str, theirs: Mapping[str, Sequence[int]], key: str
) -> None:
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            has = [f"{list(s[name])}" if name in s else "none" for s in (ours, theirs)]
            raise ModelError(
                f"{key}: '{one}' and '{other}' cannot be averaged, because '{name}' has shape {has[0]} in one and "
                f"{has[1]} in the other. Fix: name models of one architecture"
            )


def _shapes(model: str) -> dict[str, list[int]]:
    """Shapes by tensor name, read from the headers of a folder's safetensors; empty without such files.

    Those of an adapter are its base's.
    """
    folder = Path(resolve(model))
    if folder.is_dir():
        folder = Path(resolve(base_of(str(folder)) or ""))
    shapes: dict[str, list[int]] = {}
    for path in folder.glob("model*.safetensors"):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        shapes |= {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}
    return {name: shape for name, shape in shapes.items() if not name.endswith(MAY_LACK)}
