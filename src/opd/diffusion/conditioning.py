"""How each kind of pipeline tells its denoiser about a prompt. A new kind is a function and a line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from opd.errors import DataError
from opd.types import Prompt

Conditioning = Mapping[str, Tensor]
"""What a denoiser is told about one prompt, by argument of its ``forward``; no batch dimension."""

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
    """A class; one more than there are stands for none."""
    classes = pipeline.transformer.config.num_embeds_ada_norm
    return {"class_labels": torch.tensor(classes if prompt is NOTHING else label_of(prompt, classes))}


def unet(pipeline: Any, prompt: Prompt, text_tokens: int) -> Conditioning:
    """A class where the model was trained with classes, otherwise nothing."""
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
"""Pipelines whose denoisers have no prediction without a condition."""


def key_of(prompt: Prompt) -> tuple[str, str]:
    """What a prompt's encoding depends on."""
    return text_of(prompt), repr(prompt.data.get("label"))


def text_of(prompt: Prompt) -> str:
    """A prompt's text; of a chat its last message's."""
    return prompt.text if prompt.text is not None else str((prompt.messages or ({"content": ""},))[-1]["content"])


def label_of(prompt: Prompt, classes: int) -> int:
    """The class that a prompt stands for, in its entry ``label``.

    Raises:
        DataError: there is none, or no such class.
    """
    label = prompt.data.get("label")
    if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label < classes:
        raise DataError(
            f"prompts: prompt '{prompt.id}' has label {label!r}, and this pipeline goes by classes 0 to {classes - 1}; "
            "give every prompt such a 'label'"
        )
    return label
