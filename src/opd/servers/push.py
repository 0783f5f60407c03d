"""Weights for rollout servers. Everything that depends on vLLM's way of taking weights is in this file.

A push is pause, load, label, resume. The pause lets open requests end and empties the prefix cache: without it, answers
would mix keys and values of old weights with new ones. Run against vLLM 0.32, whose development routes it needs
(``VLLM_SERVER_DEV_MODE=1``).

A push over NCCL has the same four steps, with ``/start_weight_update``, ``/update_weights`` and
``/finish_weight_update`` in place of the load. It is not here, as it could not be run without a GPU.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from opd.errors import ModelError
from opd.models.adapters import adapted
from opd.models.language import LanguageModel

KEPT = 2
"""Folders that take turns: a server that restarts is given the weights of the rollouts that are still open."""

HEAD_FILE = "head.safetensors"

Shapes = Mapping[str, tuple[int, ...]]
"""Every tensor's name and shape."""


class FolderPush:
    """Writes a folder for each push, and says what a server has to be asked to load it.

    Args:
        model: the student; an adapter that is not merged is sent alone.
        folder: run and servers share it.
        key: the run file's key, for error messages.
    """

    def __init__(self, model: LanguageModel, folder: Path, *, key: str) -> None:
        self.model, self.folder, self.key = model, folder.resolve(), key
        self.adapter = adapted(model.model)
        head = model.model.get_output_embeddings()
        self.tied = not self.adapter and head.weight is model.model.get_input_embeddings().weight
        self.shapes: Shapes | None = None

    def write(self, number: int) -> Path:
        """Write the present weights, as the n-th push.

        Raises:
            ModelError: they do not hold the tensors of the first push: a server that gets fewer mixes old and new.
        """
        path = self.folder / str(number % KEPT)
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        self.model.save_weights(path)
        if self.tied:
            _untie(self.model.model, path)
        shapes = _shapes(path)
        if self.shapes not in (None, shapes):
            raise ModelError(
                f"{self.key}.push: the weights in '{path}' have other names or shapes than the first ones. Fix: report "
                "this as a bug"
            )
        self.shapes = shapes
        return path

    def load(self, path: Path, name: str) -> tuple[str, dict[str, Any]]:
        """The route and body that let a server load a folder."""
        if self.adapter:
            return "v1/load_lora_adapter", {"lora_name": name, "lora_path": str(path), "load_inplace": True}
        return "collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(path)}}


def _untie(model: Any, path: Path) -> None:
    """Add the output head as a tensor of its own, and say so in the config.

    On a CPU vLLM packs a tied head once and reloads the embeddings alone. A server that was started with such a folder
    reloads both; one that was started with tied embeddings skips the further tensor.
    """
    head = model.get_output_embeddings()
    name = next(name for name, module in model.named_modules() if module is head) + ".weight"
    save_file({name: head.weight.detach().cpu().clone()}, path / HEAD_FILE, metadata={"format": "pt"})
    index = path / SAFE_WEIGHTS_INDEX_NAME
    if index.is_file():
        listed = json.loads(index.read_text())
        listed["weight_map"][name] = HEAD_FILE
        index.write_text(json.dumps(listed))
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))


def _shapes(path: Path) -> Shapes:
    found: dict[str, tuple[int, ...]] = {}
    for file in sorted(path.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            found |= {name: tuple(opened.get_slice(name).get_shape()) for name in set(opened.keys())}
    return found
