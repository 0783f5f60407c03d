"""Loading Hugging Face causal language models, and the two things opd needs of one: hidden states and a head."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from opd.errors import ModelError
from opd.models.bundled import resolve

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model with its tokenizer.

    Attributes:
        model: any ``AutoModelForCausalLM``.
        tokenizer: its tokenizer.
        source: the path or id it came from, for messages and the model card.
        autocast: dtype of matrix products in forward passes, where it is not the weights' own.
    """

    model: Any
    tokenizer: Any
    source: str
    autocast: torch.dtype | None = None

    @property
    def device(self) -> torch.device:
        device: torch.device = next(self.model.parameters()).device
        return device

    @property
    def head_VD(self) -> Tensor:
        """[V, D] the output head's weight; the parameter itself, so gradients reach it."""
        head: Tensor = self.model.get_output_embeddings().weight
        return head

    def precision(self) -> AbstractContextManager[Any]:
        """The context every forward pass runs in."""
        return torch.autocast(self.device.type, self.autocast) if self.autocast else nullcontext()

    def hidden(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Last hidden states after the final norm, [B, L, D] for [B, L] right-padded ids."""
        return self.layers(input_ids, attention_mask, ())[0]

    def layers(self, input_ids: Tensor, attention_mask: Tensor, chosen: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        """Last hidden states, and those after chosen blocks, each [B, L, D].

        Args:
            chosen: blocks, from 1; as in transformers the last one's state is that after the final norm.
        """
        with self.precision():
            out = self.model.base_model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                use_cache=False,
                output_hidden_states=bool(chosen),
            )
        states: Tensor = out.last_hidden_state
        return states.to(self.autocast or states.dtype), [out.hidden_states[layer] for layer in chosen]

    def save(self, folder: Path) -> None:
        """Leave an ordinary model folder, with the tokenizer."""
        self.model.eval()
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    @property
    def num_layers(self) -> int:
        """Blocks."""
        number: int = self.model.config.get_text_config().num_hidden_layers
        return number

    @property
    def max_length(self) -> int | None:
        """Positions the model can hold, where its config says so."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)


def load(name: str, *, key: str, dtype: str = "float32", device: str = "cpu") -> LanguageModel:
    """Load a model and its tokenizer from a folder, a bundled name or a hub id.

    Args:
        name: what the run file says.
        key: the run file's key, for the error message.

    Raises:
        ModelError: it cannot be loaded; the sentence names the key and the value.
    """
    path = resolve(name)
    disable_progress_bar()  # the run's own progress is what the user watches
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        model = AutoModelForCausalLM.from_pretrained(path, dtype=_DTYPES[dtype])
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise unloadable(key, name, error) from error
    language_model = LanguageModel(model.to(device).eval(), tokenizer, name)
    check_linear_head(language_model, key=key)
    return language_model


def unloadable(
    key: str, name: str, error: Exception, needs: str = "config.json, weights and a tokenizer"
) -> ModelError:
    """The sentence for a model that is not there or broken."""
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return ModelError(
        f"{key}: cannot load '{name}' ({first}); give a folder with {needs}, or a hub id that is reachable from here"
    )


@torch.no_grad()
def check_linear_head(language_model: LanguageModel, *, key: str) -> None:
    """Prove on a few tokens that the model's logits are its last hidden states times its output head.

    The full-vocabulary signal rests on this. It does not hold for models that cap or scale their
    logits (``final_logit_softcapping``, ``logits_scaling``) or whose head has a bias.

    Raises:
        ModelError: it does not hold.
    """
    model = language_model.model
    if model.get_output_embeddings() is None:
        raise ModelError(f"{key}: '{language_model.source}' has no output head, so it is not a language model")
    ids = torch.arange(8, device=language_model.device).remainder(model.config.get_text_config().vocab_size)[None]
    mask = torch.ones_like(ids)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float()
    ours = (language_model.hidden(ids, mask) @ language_model.head_VD.T).float()
    tolerance = 1e-3 if logits.dtype == language_model.head_VD.dtype else 5e-2
    if ours.shape != logits.shape or not torch.allclose(ours, logits, rtol=tolerance, atol=tolerance * 10):
        raise ModelError(
            f"{key}: the logits of '{language_model.source}' are not its last hidden states times its output head "
            "(soft-capping, scaling or a bias), and the full-vocabulary signal needs that; use another model"
        )


def check_vocabulary(student: Any, teacher: Any, *, key: str) -> int:
    """Compare two tokenizers by content.

    Args:
        student, teacher: tokenizers.
        key: the run file's key that named the teacher.

    Returns:
        How many ids both have in common from 0 on: the vocabulary that losses are computed over.

    Raises:
        ModelError: some token has another id; the sentence names the first.
    """
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    differing = sorted((i, t) for t, i in ours.items() if theirs.get(t) != i)
    extra = sorted((i, t) for t, i in theirs.items() if t not in ours)
    if differing or extra:
        index, token = (differing or extra)[0]
        raise ModelError(
            f"{key}: the teacher's vocabulary is not the student's ({len(theirs)} and {len(ours)} tokens; the first "
            f"difference is {token!r} with id {index}), so their distributions cannot be compared token by token; "
            "take a teacher with the same tokenizer, or set loss.signal=cross and loss.divergence=jsd"
        )
    return int(max(ours.values())) + 1


def checkpoint_activations(language_model: LanguageModel) -> None:
    """Compute activations again in the backward pass instead of keeping them, by whichever name transformers has."""
    model = language_model.model
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable()


def stop_ids(language_model: LanguageModel) -> frozenset[int]:
    """Every id that ends a turn: the tokenizer's EOS and the generation config's."""
    configured = getattr(language_model.model.generation_config, "eos_token_id", None)
    ids: Iterable[int | None] = configured if isinstance(configured, (list, tuple)) else [configured]
    return frozenset(i for i in [*ids, language_model.tokenizer.eos_token_id] if i is not None)


def pad(sequences: Sequence[Sequence[int]], *, left: bool, device: torch.device) -> tuple[Tensor, Tensor]:
    """Stack id lists of different lengths.

    Args:
        sequences: B id lists.
        left: pad before the ids (for decoding) or after them (for scoring).

    Returns:
        ids [B, L] int64, padded with 0, and mask [B, L] int64, 0 on padding.
    """
    width = max(len(s) for s in sequences)
    ids = torch.zeros(len(sequences), width, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        where = slice(width - len(sequence), width) if left else slice(0, len(sequence))
        ids[row, where] = torch.tensor(sequence, dtype=torch.int64)
        mask[row, where] = 1
    return ids.to(device), mask.to(device)


def freeze(model: nn.Module) -> nn.Module:
    """Turn off gradients and dropout."""
    return model.requires_grad_(False).eval()
