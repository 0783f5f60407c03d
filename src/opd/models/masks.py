"""Attention masks of our own, in the form that a model takes: which keys each new token sees.

transformers hands a mask with four dimensions to the attention layers as it is, and a dictionary of masks where a
model's layers see different keys. Suffixes: B rows, Q new tokens, K keys.
"""

from __future__ import annotations

import torch
from torch import Tensor

from opd.models.language import LanguageModel

KINDS = ("full_attention", "sliding_attention")
"""Kinds of attention layers whose masks are known."""
CHANGES_WITH_LENGTH = ("dynamic", "longrope")
"""Kinds of rotary positions that turn a key further when the text around it grows, so that keys cannot be kept."""


def kinds_of_layers(language_model: LanguageModel) -> set[str]:
    """What the model's attention layers see, by transformers' names; other kinds than ``KINDS`` have no mask here."""
    config = language_model.model.config.get_text_config(decoder=True)
    if kinds := getattr(config, "layer_types", None):
        return set(kinds)
    if getattr(config, "attention_chunk_size", None):
        return {"chunked_attention"}
    return {"sliding_attention" if getattr(config, "sliding_window", None) else "full_attention"}


def takes_own_mask(language_model: LanguageModel) -> bool:
    """Whether ``own_mask`` can be made for a model, and its keys can be kept from pass to pass."""
    config = language_model.model.config.get_text_config(decoder=True)
    rotary = getattr(config, "rope_parameters", None) or {}
    kinds = {rotary.get("rope_type"), *(one.get("rope_type") for one in rotary.values() if isinstance(one, dict))}
    return (
        config._attn_implementation in ("sdpa", "eager")
        and kinds_of_layers(language_model) <= set(KINDS)
        and kinds.isdisjoint(CHANGES_WITH_LENGTH)
    )


def own_mask(language_model: LanguageModel, seen_BQK: Tensor, distance_BQK: Tensor) -> Tensor | dict[str, Tensor]:
    """The argument ``attention_mask`` for keys that are seen.

    Args:
        seen_BQK: bool; each token sees one key at least.
        distance_BQK: the token's position minus the key's, which a sliding window is measured by.
    """
    config = language_model.model.config.get_text_config(decoder=True)
    masks = {}
    for kind in sorted(kinds_of_layers(language_model)):
        mask_BQK = seen_BQK
        if kind == "sliding_attention":
            mask_BQK = seen_BQK & (distance_BQK < config.sliding_window)
        if config._attn_implementation == "eager":  # which adds the mask
            dtype = language_model.autocast or language_model.model.dtype
            mask_BQK = torch.zeros_like(mask_BQK, dtype=dtype).masked_fill_(~mask_BQK, torch.finfo(dtype).min)
        masks[kind] = mask_BQK[:, None]
    return masks if len(masks) > 1 else next(iter(masks.values()))
