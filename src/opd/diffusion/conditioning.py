"""How each kind of pipeline encodes a prompt for its denoiser. A new kind is one function and one line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from opd.errors import DataError
from opd.types import Prompt

Conditioning = Mapping[str, Tensor]
"""The denoiser's inputs for one prompt, by argument of its ``forward``; without a batch dimension."""

NOTHING = Prompt(id="", text="")
"""The prompt of the unconditional prediction."""


def stable_diffusion_3(pipeline: Any, prompt: Prompt, text_tokens: int) -> Conditioning:
    """Tokens of three text encoders, and a pooled vector of two."""
    embeds, _, pooled, _ = pipeline.encode_prompt(
        [text_of(prompt)], None, None, do_classifier_free_guidance=False, max_sequence_length=text_tokens
    )
    return {"encoder_hidden_states": embeds[0], "pooled_projections": pooled[0]}


def stable_diffusion(pipeline: Any, prompt: Prompt, text_tokens: int) -> Conditioning:
    """Tokens of one text encoder."""
    embeds, _ = pipeline.encode_prompt(
        [text_of(prompt)], pipeline._execution_device, 1, do_classifier_free_guidance=False
    )
    return {"encoder_hidden_states": embeds[0]}


def dit(pipeline: Any, prompt: Prompt, text_tokens: int) -> Conditioning:
    """A class label; the label after the last class is the unconditional one."""
    classes = pipeline.transformer.config.num_embeds_ada_norm
    return {"class_labels": torch.tensor(classes if prompt is NOTHING else label_of(prompt, classes))}


def unet(pipeline: Any, prompt: Prompt, text_tokens: int) -> Conditioning:
    """A class label if the model was trained with classes, otherwise nothing."""
    classes = pipeline.unet.config.num_class_embeds
    return {} if classes is None else {"class_labels": torch.tensor(label_of(prompt, classes))}


ENCODERS: dict[str, Callable[[Any, Prompt, int], Conditioning]] = {
    "StableDiffusion3Pipeline": stable_diffusion_3,
    "StableDiffusionPipeline": stable_diffusion,
    "DiTPipeline": dit,
    "DDPMPipeline": unet,
    "DDIMPipeline": unet,
}
"""By the pipeline's class."""

UNGUIDED = frozenset({"DDPMPipeline", "DDIMPipeline"})
"""Pipelines whose denoisers have no unconditional prediction."""


def key_of(prompt: Prompt) -> tuple[str, str]:
    """The parts of a prompt that its encoding depends on."""
    return text_of(prompt), repr(prompt.data.get("label"))


def text_of(prompt: Prompt) -> str:
    """A prompt's text; for a chat, that of the last message."""
    return prompt.text if prompt.text is not None else str((prompt.messages or ({"content": ""},))[-1]["content"])


def label_of(prompt: Prompt, classes: int) -> int:
    """The class in a prompt's entry ``label``.

    Raises:
        DataError: there is none, or it is not in the range of classes.
    """
    label = prompt.data.get("label")
    if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label < classes:
        raise DataError(
            f"prompts: prompt '{prompt.id}' has label {label!r}, and this pipeline takes classes 0 to {classes - 1}. "
            "Fix: give every prompt such a 'label'"
        )
    return label
