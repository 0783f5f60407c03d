"""Adapters inside the layers of a language model (LoRA and its relatives), through peft.

A base is in memory once. Each model that has it (the student, its initial state, its average, adapters that teach) is
a tree of modules of its own around the same tensors (``shared_copy``). A forward pass of one therefore never switches
another's adapter on or off, and an error in it leaves nothing switched.
"""

from __future__ import annotations

import copy
import logging
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from opd.errors import ConfigError, ModelError

# peft imports it if it is installed. It reports kernels that it lacks, and every product whose inputs are not float16.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

ALONE = "lora"
"""Folder of the adapter alone, inside the folder of the model that it was merged into."""


def adapted(model: Any) -> bool:
    """Whether a model is a ``PeftModel``."""
    return getattr(model, "peft_type", None) is not None


def settings_of(model: Any) -> Any:
    """The ``PeftConfig`` of the active adapter."""
    return model.peft_config[model.active_adapter]


def new_adapter(
    base: Any, *, rank: int, alpha: int, targets: str | Sequence[str] = "all-linear", dropout: float = 0.0
) -> Any:
    """Put a new LoRA into a model, which then computes what it did before. Only the adapter's weights train.

    Args:
        base: changed in place; its own weights are frozen.

    Returns:
        A ``PeftModel``; the adapter's weights are float32 whatever dtype the base has.

    Raises:
        ConfigError: a target is no linear layer.
    """
    from peft import LoraConfig, get_peft_model

    named = targets if isinstance(targets, str) else list(targets)
    if isinstance(named, list):
        _check_targets(base, named)
    settings = LoraConfig(r=rank, lora_alpha=alpha, target_modules=named, lora_dropout=dropout, task_type="CAUSAL_LM")
    with _quiet():
        model = get_peft_model(base, settings)
    path = settings_of(model).base_model_name_or_path
    if path and Path(path).is_dir():  # a relative path would hold for this working directory alone
        settings_of(model).base_model_name_or_path = str(Path(path).resolve())
    return model


def _check_targets(base: Any, targets: Sequence[str]) -> None:
    """Every name has to be that of a linear layer inside the model: peft leaves out names that match nothing."""
    linear = _linear(base)
    for target in targets:
        if not any(_ends(name, target) for name in linear):
            known = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
            raise ConfigError(
                f"lora.targets: the student has no linear layer '{target}' in its blocks. Fix: name some of {known}, "
                "or all-linear"
            )


def saved_adapter(base: Any, path: str, *, trainable: bool) -> Any:
    """A saved adapter in a model, which is changed in place.

    Args:
        base: the model that the adapter was made for; its own weights are frozen.
        path: folder or hub id of the adapter.
        trainable: whether the adapter's weights train.

    Raises:
        ValueError: tensors are missing or have no place in this model, or the adapter changes its base.
    """
    from peft import PeftConfig, get_peft_model
    from peft.utils import load_peft_weights, set_peft_model_state_dict

    settings = PeftConfig.from_pretrained(path)
    if start := _changes_base(settings):
        raise ValueError(f"init_lora_weights={start} changes the weights of its base")
    settings.inference_mode = not trainable
    base_name = settings.base_model_name_or_path
    base.requires_grad_(False)
    with _quiet():
        model = get_peft_model(base, settings)
    settings.base_model_name_or_path = base_name
    wanted = {name: tensor.shape for name, tensor in adapter_tensors(model).items()}
    saved = load_peft_weights(path, device="cpu")
    for name in sorted(wanted.keys() | saved.keys()):
        if name not in saved:
            raise ValueError(f"its tensor '{name}' is missing")
        if name not in wanted:  # loading it would change the base
            raise ValueError(f"its tensor '{name}' has no place in an adapter of this base")
        if saved[name].shape != wanted[name]:
            raise ValueError(
                f"its tensor '{name}' is {list(saved[name].shape)}, and the base needs {list(wanted[name])}"
            )
    set_peft_model_state_dict(model, saved)
    return model


def check_adapter(model: Any, *, key: str) -> None:
    """Refuse an adapter that changes the ids, the output head or its base.

    Raises:
        ModelError: it adds virtual tokens, adapts the head, changed its base, is merged into it, or is not alone.
    """
    if not adapted(model):
        return
    if len(active := model.active_adapters) > 1:  # of which out would hold one
        raise ModelError(
            f"{key}: the model has several active adapters ({', '.join(active)}). Fix: activate one with set_adapter, "
            "or merge them with add_weighted_adapter"
        )
    settings = settings_of(model)
    if start := _changes_base(settings):
        raise ModelError(
            f"{key}: the adapter's init_lora_weights={start} changed the weights of its base, so the model without the "
            "adapter is not the base that other models have. Fix: take a LoRA with init_lora_weights=True"
        )
    if any(getattr(module, "merged", False) for module in model.modules()):
        raise ModelError(
            f"{key}: the model's adapter is merged into its base, so it does nothing. Fix: call unmerge_adapter()"
        )
    if settings.is_prompt_learning:
        raise ModelError(
            f"{key}: the model's adapter is {settings.peft_type.value}, which adds virtual tokens, so the model "
            "reads other ids than a rollout has. Fix: use LoRA or another adapter inside the layers"
        )
    if getattr(model.get_output_embeddings(), "base_layer", None) is not None:
        raise ModelError(
            f"{key}: the model's adapter changes the output head, and losses read the head's own weights. Fix: leave "
            "lm_head out of the adapter's target_modules, or name it in modules_to_save"
        )


def _changes_base(settings: Any) -> str | None:
    """How an adapter was initialized, if that changed the weights of its base."""
    start = getattr(settings, "init_lora_weights", True)
    return start if isinstance(start, str) and start not in ("gaussian", "orthogonal") else None


def check_agrees(model: Any, *, rank: int, alpha: int, targets: str | Sequence[str], dropout: float = 0.0) -> None:
    """Refuse settings of a new adapter that are not those of the adapter that a student came as.

    Raises:
        ConfigError: one of them differs.
    """
    settings = settings_of(model)
    given = {"rank": rank, "alpha": alpha, "dropout": dropout, "targets": _layers(model, targets)}
    own = {
        "rank": getattr(settings, "r", None),
        "alpha": getattr(settings, "lora_alpha", None),
        "dropout": getattr(settings, "lora_dropout", None),
        "targets": _layers(model),
    }
    for key, value in own.items():
        if given[key] != value:
            shown = sorted(settings.target_modules) if key == "targets" else value
            raise ConfigError(
                f"lora.{key}: the student is an adapter already, with {key} {shown}, and that adapter trains. Fix: set "
                f"lora.{key} to the same, or leave lora out"
            )


def _layers(model: Any, targets: str | Sequence[str] | None = None) -> set[str]:
    """Names of an adapted model's layers that have an adapter, or of those that ``targets`` names."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    whole = model.get_base_model()
    have = {name for name, module in whole.named_modules() if isinstance(module, BaseTunerLayer)}
    if targets is None:
        return have
    inside = {name for name in _linear(whole) if not any(name.startswith(f"{layer}.") for layer in have)}
    return {name for name in have | inside if targets == "all-linear" or any(_ends(name, t) for t in targets)}


def _linear(base: Any) -> set[str]:
    """Names of the linear layers, without the output head."""
    from transformers.pytorch_utils import Conv1D

    head = base.get_output_embeddings()
    return {name for name, m in base.named_modules() if isinstance(m, (nn.Linear, Conv1D)) and m is not head}


def _ends(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def check_whole(model: Any, *, key: str) -> None:
    """Refuse parameters that train beside an adapter: its folder could not hold them.

    Raises:
        ModelError: there is one.
    """
    if not adapted(model):
        return
    kept = {tensor.data_ptr() for tensor in adapter_tensors(model).values()}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.data_ptr() not in kept:
            raise ModelError(
                f"{key}: '{name}' has requires_grad beside the adapter, whose folder could not hold it. Fix: freeze "
                "it, or name its module in the adapter's modules_to_save"
            )


def adapter_tensors(model: Any) -> dict[str, Tensor]:
    """The active adapter's tensors, by their names in its file."""
    from peft.utils import get_peft_model_state_dict

    found: dict[str, Tensor] = get_peft_model_state_dict(
        model, adapter_name=model.active_adapter, save_embedding_layers=False
    )
    return found


def save_adapter(model: Any, folder: Path) -> None:
    """Write the active adapter's folder, which peft and vLLM load: its settings and its tensors."""
    name, settings = model.active_adapter, settings_of(model)
    if isinstance(settings.target_modules, set):  # in whose order peft would write it
        settings.target_modules = sorted(settings.target_modules)
    model.save_pretrained(folder, selected_adapters=[name], save_embedding_layers=False)
    if name != "default":  # peft writes an adapter of another name into a folder of that name
        for file in (folder / name).iterdir():
            file.replace(folder / file.name)
        shutil.rmtree(folder / name)


def merged(model: Any) -> Any:
    """A whole model on the CPU with the adapter merged in; a model without one is returned as it is."""
    if not adapted(model):
        return model
    there: dict[int, Any] = {id(p): nn.Parameter(_to_cpu(p), requires_grad=False) for p in model.parameters()}
    there |= {id(b): _to_cpu(b) for b in model.buffers()}
    return copy.deepcopy(model, there).merge_and_unload(safe_merge=True)


def _to_cpu(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without peft's warnings: of missing tensors, which are refused here, and of deprecated calls of its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("ignore", FutureWarning)
        yield
