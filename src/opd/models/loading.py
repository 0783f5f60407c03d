"""Where language models come in: from a folder, a bundled name, a hub id, or as objects from Python."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from opd.errors import ModelError
from opd.models.bundled import resolve
from opd.models.language import LanguageModel, check_linear_head

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load(name: str, *, key: str, dtype: str = "float32", device: str = "cpu") -> LanguageModel:
    """Load a model and its tokenizer from a folder, a bundled name or a hub id.

    Args:
        name: the run file's value.
        key: the run file's key, for the error message.

    Raises:
        ModelError: it cannot be loaded; the sentence names the key and the value.
    """
    path = resolve(name)
    disable_progress_bar()  # a run shows its own progress
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        model = AutoModelForCausalLM.from_pretrained(path, dtype=_DTYPES[dtype])
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise unloadable(key, name, error) from error
    language_model = LanguageModel(model.to(device).eval(), tokenizer, name)
    check_linear_head(language_model, key=key)
    return language_model


def accept(language_model: LanguageModel, *, key: str) -> LanguageModel:
    """Check a model given from Python as ``load`` checks a model that it loads.

    A ``PeftModel`` with adapters inside its layers (LoRA and its relatives) is accepted. Its parameters train as their
    owner set them; see ``check_trainable``.

    Raises:
        ModelError: its hidden states and output head cannot be read.
    """
    config = getattr(language_model.model, "active_peft_config", None)
    if config is not None and config.is_prompt_learning:
        raise ModelError(
            f"{key}: the model's adapter is {config.peft_type.value}, which adds virtual tokens, so the model "
            "reads other ids than a rollout has. Fix: use LoRA or another adapter inside the layers"
        )
    if getattr(language_model.model.get_output_embeddings(), "base_layer", None) is not None:
        raise ModelError(
            f"{key}: the model's adapter changes the output head, and losses read the head's own weights. Fix: leave "
            "lm_head out of the adapter's target_modules, or name it in modules_to_save"
        )
    # Weights that are not finite have no logits to compare; the loop leaves out the steps that they spoil.
    check_linear_head(language_model, key=key, equal_nan=True)
    return language_model


def check_trainable(language_model: LanguageModel, *, key: str) -> None:
    """Refuse a student without a parameter that trains.

    What trains is the owner's choice: parameters with ``requires_grad``. A parameter that its owner froze stays
    frozen. If all of them are frozen nothing is unfrozen silently: the run is refused.

    Raises:
        ModelError: no parameter has ``requires_grad``.
    """
    if not any(p.requires_grad for p in language_model.model.parameters()):
        raise ModelError(
            f"{key}: no parameter of '{language_model.source}' has requires_grad, so nothing would train. Fix: call "
            "requires_grad_(True) on the parameters to train, or load the adapter with is_trainable=True"
        )


def unloadable(
    key: str, name: str, error: Exception, needs: str = "config.json, weights and a tokenizer"
) -> ModelError:
    """The error for a model that is missing or broken."""
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return ModelError(
        f"{key}: cannot load '{name}' ({first}); give a folder with {needs}, or a hub id that is reachable from here"
    )
