"""Where language models come in: from a folder, a bundled name, a hub id, or as objects from Python."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from opd.distributed import release
from opd.errors import ModelError, OpdError, near
from opd.models.adapters import adapted, check_whole, merged, saved_adapter
from opd.models.bases import Bases
from opd.models.bundled import bundled_names, resolve
from opd.models.folders import ADAPTER, adapter_config, base_of, file_in
from opd.models.inspection import inspect, not_causal
from opd.models.language import LanguageModel
from opd.models.sealed import check_sealed


def load(
    name: str,
    *,
    key: str,
    dtype: str = "float32",
    device: str = "cpu",
    bases: Bases | None = None,
    trainable: bool = False,
    parts: Mapping[str, Any] = MappingProxyType({}),
) -> LanguageModel:
    """Load a model and its tokenizer from a folder, a bundled name or a hub id; an adapter together with its base.

    Args:
        name: the run file's value.
        key: the run file's key, for the error message.
        dtype: of the weights; an adapter's own are float32.
        bases: models in memory whose weights an adapter may share.
        trainable: whether an adapter's weights train; its base is frozen.
        parts: see ``in_parts``; an adapter and a quantised model are read whole.

    Raises:
        ModelError: it cannot be loaded; the sentence names the key and the value.
    """
    path = resolve(name)
    disable_progress_bar()  # a run shows its own progress
    bases = bases or Bases()
    check_sealed(path, key=key)
    adapter = adapter_config(path) is not None
    base = _base(path, name, key) if adapter else path
    check_sealed(base, key=key)
    tokens = path if not adapter or file_in(path, "tokenizer_config.json") else base
    try:
        config = AutoConfig.from_pretrained(base, trust_remote_code=False)
        if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
            raise not_causal(key, name, config.model_type)
        tokenizer = AutoTokenizer.from_pretrained(tokens, trust_remote_code=False)
        parts = {} if adapter or bases.quantize else parts
        model = bases.model(base, dtype=dtype, device=device, shared=adapter, **parts)
    except OpdError:
        raise
    except Exception as error:  # a damaged folder raises almost anything
        broken = unloadable(key, base, error)
        raise ModelError(f"{broken}. '{base}' is the base of the adapter '{name}'") if adapter else broken from error
    if adapter:
        model = _with_adapter(model, path, name, key=key, trainable=trainable)
    found = LanguageModel(model, tokenizer, name, stored=config.get_text_config().dtype)
    if parts:
        found.divide(None)
    found = inspect(found, key)
    release(model)
    return found


def load_whole(name: str, *, key: str) -> LanguageModel:
    """Load a model as ``load`` does, with an adapter merged into its base.

    Raises:
        ModelError: as for ``load``.
    """
    model = load(name, key=key)
    return replace(model, model=merged(model.model))


def _base(path: str, name: str, key: str) -> str:
    """The path or id of an adapter's base."""
    named = base_of(path)
    if named is None:
        raise ModelError(
            f"{key}: the adapter '{name}' does not name its base. Fix: write the base's path or id as "
            f"base_model_name_or_path in its {ADAPTER}"
        )
    base = resolve(named)
    if adapter_config(base) is not None:
        raise ModelError(
            f"{key}: the base '{named}' of the adapter '{name}' is an adapter itself. Fix: merge that one into its base"
        )
    return base


def _with_adapter(model: Any, path: str, name: str, *, key: str, trainable: bool) -> Any:
    try:
        whole = saved_adapter(model, path, trainable=trainable)
    except Exception as error:
        raise unloadable(key, name, error, needs=f"{ADAPTER} and adapter_model.safetensors") from error
    return whole.eval()


def accept(language_model: LanguageModel, *, key: str, trains: bool = False) -> LanguageModel:
    """Check a model given from Python as ``load`` checks a model that it loads.

    If all of its weights may train they become float32 in place; ``stored`` keeps the dtype that they came in.

    A ``PeftModel`` with adapters inside its layers (LoRA and its relatives) is accepted. Its parameters train as their
    owner set them; see ``check_trainable``.

    Raises:
        ModelError: the model cannot be used; the sentence says why.
    """
    language_model = replace(language_model, stored=language_model.model.dtype)
    if trains:
        _train_in_float32(language_model.model)
    return inspect(language_model, key)


def _train_in_float32(model: Any) -> None:
    """Turn the student's weights into float32: 16 bits would round small updates to nothing.

    Of a ``PeftModel`` only the weights that train are turned, as its base may be quantised. What its owner froze stays
    frozen.
    """
    if not adapted(model):
        model.float()
        return
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def check_trainable(language_model: LanguageModel, *, key: str) -> None:
    """Refuse a student without a parameter that trains.

    What trains is the owner's choice: parameters with ``requires_grad``. A parameter that its owner froze stays
    frozen. If all of them are frozen nothing is unfrozen silently: the run is refused.

    Raises:
        ModelError: no parameter has ``requires_grad``, or one that an adapter's folder could not hold.
    """
    check_whole(language_model.model, key=key)
    if not any(p.requires_grad for p in language_model.model.parameters()):
        raise ModelError(
            f"{key}: no parameter of '{language_model.source}' has requires_grad, so nothing would train. Fix: call "
            "requires_grad_(True) on the parameters to train, or load the adapter with is_trainable=True"
        )


def unloadable(
    key: str, name: str, error: Exception, needs: str = "config.json, weights and a tokenizer"
) -> ModelError:
    """The error for a model that is missing or broken."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    first = " ".join(lines[: 2 if lines[0].endswith(":") else 1])
    meant = near(name if "/" in name else f"nano/{name}", bundled_names()) if not Path(name).exists() else "."
    return ModelError(
        f"{key}: cannot load '{name}' ({first}){meant} Fix: give a folder with {needs}, or a hub id that is reachable "
        "from here"
    )
