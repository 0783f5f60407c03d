"""The attention of a loaded model, where the run file chooses it."""

from __future__ import annotations

from opd.errors import ConfigError, OpdError
from opd.models.inspection import inspect
from opd.models.language import LanguageModel

NEEDS_GPU = ("flash_attention_2", "flex_attention")
"""The first has no kernel for a CPU; torch compiles the second for one, and fails at some lengths."""


def use_attention(language_model: LanguageModel, attention: str, key: str) -> None:
    """Compute the model's attention this way from now on, and inspect the model again.

    Raises:
        ConfigError: the device, the architecture or a missing package does not allow it.
        ModelError: the model does not pass its inspection any more.
    """
    if attention in NEEDS_GPU and language_model.device.type == "cpu":
        raise ConfigError(
            f"attention: {attention} needs a GPU, and device is cpu. Fix: set attention=sdpa, or leave it out"
        )
    try:
        language_model.model.set_attn_implementation(attention)
        if language_model.model.config.get_text_config()._attn_implementation != attention:
            raise ValueError(f"{type(language_model.model).__name__} has its own attention alone")
        inspect(language_model, key)
    except OpdError:
        raise
    except Exception as error:  # whatever a missing kernel, package or support raises
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"attention: {attention} cannot be used for {key} '{language_model.source}' ({reason}). Fix: set another "
            "attention, or leave it out"
        ) from error
