"""Several models of one architecture in the memory of one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from opd.distributed import divided_as
from opd.errors import OpdError
from opd.models.bases import Bases
from opd.models.bundled import resolve
from opd.models.folders import base_of, file_in
from opd.models.inspection import inspect
from opd.models.language import LanguageModel
from opd.models.loading import load, unloadable
from opd.models.vocabularies import Shared, within

NOT_SHAPE = frozenset({"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"})
"""Entries of a model's config that do not affect the shapes of its weights."""


class ModelPool:
    """Models by name. Those of one architecture share a skeleton, and only weights move, from safetensors files.

    A model is valid until the next one is requested. A model stays in memory as a whole if its files are no
    safetensors, or name its parameters otherwise than the skeleton, or if its weights are quantised or its head has a
    bias. Adapters stay, each around the weights of its base, which is in memory once.

    Args:
        sources: path, bundled name or hub id of each.
        served: models that servers read, by name, in place of their sources.
        key: the run file's key, for error messages.
        dtype, device: of the models.
        bases: models in memory whose weights adapters share.
        parts: see ``in_parts``.

    Raises:
        ModelError: one of them cannot be loaded.
    """

    def __init__(
        self,
        sources: Mapping[str, str],
        *,
        key: str,
        dtype: str = "float32",
        device: str = "cpu",
        bases: Bases | None = None,
        served: Mapping[str, LanguageModel] | None = None,
        parts: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self.files: dict[str, dict[str, Path]] = {}
        self.models: dict[str, LanguageModel] = {}
        self.held: dict[int, str] = {}
        """Name of the model whose weights a skeleton holds, by the skeleton's id."""
        skeletons: dict[str, LanguageModel] = {}
        bases = bases or Bases()
        for name, source in sources.items():
            if served and name in served:
                self.models[name], self.files[name], self.held[id(served[name])] = served[name], {}, name
                continue
            if bases.quantize or base_of(resolve(source)) != resolve(source):
                whole = load(source, key=f"{key}.{name}", dtype=dtype, device=device, bases=bases)
                whole.model.requires_grad_(False)
                self.models[name], self.files[name], self.held[id(whole)] = whole, {}, name
                continue
            shape = _shape(source, f"{key}.{name}")
            skeleton = skeletons.get(shape)
            try:
                self.files[name] = files = weight_files(source)
                if skeleton is not None and _names(skeleton) <= files.keys():
                    self._move_in(name, skeleton)
                    inspect(skeleton, f"{key}.{name}")
                else:
                    skeleton = load(source, key=f"{key}.{name}", dtype=dtype, device=device, parts=parts)
                    skeleton.model.requires_grad_(False)
                    self.held[id(skeleton)] = name
                    if _names(skeleton) <= files.keys() and not skeleton.has_bias:
                        skeletons[shape] = skeleton
            except OpdError:
                raise
            except Exception as error:  # a damaged folder raises almost anything
                raise unloadable(f"{key}.{name}", source, error) from error
            self.models[name] = skeleton

    def __getitem__(self, name: str) -> LanguageModel:
        """The model of that name, with its weights moved in."""
        skeleton = self.models[name]
        if self.held[id(skeleton)] != name:
            self._move_in(name, skeleton)
        return skeleton

    def __iter__(self) -> Any:
        return iter(self.models)

    def head(self, name: str) -> Tensor:
        """[V, D] the model's output head; read from its file if models share the skeleton."""
        skeleton = self.models[name]
        if sum(model is skeleton for model in self.models.values()) == 1:
            return skeleton.head_VD.detach()
        head_VD = skeleton.model.get_output_embeddings().weight
        parameter = next(n for n, p in skeleton.model.named_parameters() if p is head_VD)
        with safe_open(self.files[name][parameter], "pt") as file:
            stored: Tensor = file.get_tensor(parameter)
        return stored[: skeleton.rows].to(head_VD.dtype)

    def cut(self, shared: Shared) -> None:
        """Cut every model's vocabulary to the ids that all share with the student."""
        cut = {id(model): within(model, shared) for model in self.models.values()}
        self.models = {name: cut[id(model)] for name, model in self.models.items()}
        self.held = {id(cut[skeleton]): name for skeleton, name in self.held.items()}

    @property
    def in_memory(self) -> int:
        """Number of whole models in memory at one time; adapters of one base count as one."""
        whole = [model.model for model in self.models.values() if not model.is_served]
        return len({next(model.parameters()).data_ptr() for model in whole})

    @property
    def max_length(self) -> int | None:
        """Largest number of positions that every model can hold; None if no config gives it."""
        lengths = [m.max_length for m in self.models.values() if m.max_length is not None]
        return min(lengths, default=None)

    @torch.no_grad()
    def _move_in(self, name: str, skeleton: LanguageModel) -> None:
        parameters = dict(skeleton.model.named_parameters())
        for path in sorted({self.files[name][n] for n in parameters}):
            with safe_open(path, "pt") as file:
                for parameter in parameters.keys() & set(file.keys()):
                    stored = file.get_tensor(parameter)
                    if stored.shape != parameters[parameter].shape:
                        shapes = f"{list(stored.shape)}, and config.json asks for {list(parameters[parameter].shape)}"
                        raise ValueError(f"tensor '{parameter}' has shape {shapes}")
                    parameters[parameter].copy_(divided_as(parameters[parameter], stored))
        self.held[id(skeleton)] = name


def weight_files(source: str) -> dict[str, Path]:
    """The safetensors file of each tensor of a model; empty if it has no such files."""
    path = resolve(source)
    index = file_in(path, SAFE_WEIGHTS_INDEX_NAME)
    if index is not None:
        shards: dict[str, str] = json.loads(index.read_text())["weight_map"]
        found = {shard: file_in(path, shard) for shard in set(shards.values())}
        return {name: file for name, shard in shards.items() if (file := found[shard])}
    single = file_in(path, SAFE_WEIGHTS_NAME)
    if single is None:
        return {}
    with safe_open(single, "pt") as file:
        return dict.fromkeys(file.keys(), single)


def _shape(source: str, key: str) -> str:
    """A key that is equal for two models that can share a skeleton."""
    try:
        config = AutoConfig.from_pretrained(resolve(source)).to_dict()
    except (OSError, ValueError) as error:
        raise unloadable(key, source, error) from error
    return json.dumps({k: v for k, v in config.items() if k not in NOT_SHAPE}, sort_keys=True, default=str)


def _names(model: LanguageModel) -> set[str]:
    return {name for name, _ in model.model.named_parameters()}
