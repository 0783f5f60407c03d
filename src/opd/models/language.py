"""Hugging Face causal language models: hidden states, output head, vocabularies and end tokens."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils.logging import disable_progress_bar

from opd.distributed import READ, add_read, divide, whole_of
from opd.errors import ConfigError
from opd.losses.gpu import sent
from opd.models.adapters import ALONE, adapted, merged, save_adapter
from opd.models.chat import Chat


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model with its tokenizer.

    Attributes:
        model: any ``AutoModelForCausalLM``.
        tokenizer: its tokenizer.
        source: its path or id, for error messages and the model card.
        autocast: dtype of matrix products in forward passes; None for the weights' own.
        merge: whether ``save`` merges an adapter into its base.
        logit_scale: the model's logits are its last hidden states times its output head times this number.
        stored: dtype of the weights as they came in, in which ``save`` writes them; None for the weights' present one.
        limit: number of ids that generation and losses know at most; None for all. Ids from it on are never read.
    """

    model: Any
    tokenizer: Any
    source: str
    autocast: torch.dtype | None = None
    merge: bool = False
    logit_scale: float = 1.0
    stored: torch.dtype | None = None
    limit: int | None = None

    @property
    def is_served(self) -> bool:
        """Whether servers read the model, so that it only scores; its config, tokenizer and output head are here."""
        return False

    @property
    def device(self) -> torch.device:
        device: torch.device = next(self.model.parameters()).device
        return device

    @property
    def head_VD(self) -> Tensor:
        """[V, D] weight of the output head; the parameter itself or a part of it, so gradients reach it.

        V is ``rows``. A head's bias is one more column, [V, D + 1], for one more hidden unit that is always 1.
        """
        weight_VD: Tensor = whole_of(self.model.get_output_embeddings().weight)
        if self._bias_V is not None:
            weight_VD = torch.cat([weight_VD, self._bias_V[:, None]], 1)
        return weight_VD if self.rows == len(weight_VD) else weight_VD[: self.rows]

    @cached_property
    def rows(self) -> int:
        """Number of ids that generation and losses know: the output head's rows, without those behind the last token.

        A head that is padded to a round size has rows that no token has. They are never sampled, and no distribution
        that a loss reads has them.
        """
        last: int = max(self.tokenizer.get_vocab().values())
        known = min(last + 1, len(self.model.get_output_embeddings().weight))
        return known if self.limit is None else min(known, self.limit)

    @property
    def known_ids(self) -> int:
        """Number of ids that the model can read."""
        return len(self.model.get_input_embeddings().weight)

    @property
    def has_bias(self) -> bool:
        """Whether the output head has a bias."""
        return self._bias_V is not None

    @property
    def _bias_V(self) -> Tensor | None:
        bias_V = getattr(self.model.get_output_embeddings(), "bias", None)
        return None if bias_V is None else whole_of(bias_V)

    @property
    def width(self) -> int:
        """Number of hidden units."""
        units: int = self.model.get_output_embeddings().weight.shape[1]
        return units

    def precision(self) -> AbstractContextManager[Any]:
        """The autocast context of every forward pass."""
        return torch.autocast(self.device.type, self.autocast) if self.autocast else nullcontext()

    def hidden(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Last hidden states after the final norm, [B, L, D] for [B, L] right-padded ids."""
        return self.layers(input_ids, attention_mask, ())[0]

    def layers(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | dict[str, Tensor] | None,
        chosen: Sequence[int],
        positions: Tensor | None = None,
        cache: Any = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Last hidden states, and the states after chosen blocks, each [B, L, D].

        Args:
            input_ids: [B, L]; they, a mask [B, L] and positions may lie on the CPU.
            attention_mask: [B, L], 0 on padding; None for packed rows; ``opd.models.masks.own_mask``.
            positions: [B, L], starting over with each sequence of a packed row.
            chosen: blocks, from 1. As in transformers, the state of the last block is that after the final norm.
            cache: keys and values of tokens before these, and then of these too; None to keep none.
        """
        device = self.device
        mask = sent(attention_mask, device) if isinstance(attention_mask, Tensor) else attention_mask
        with self.precision():
            last, each = self._read(
                input_ids=sent(input_ids, device),
                attention_mask=mask,
                use_cache=cache is not None,
                output_hidden_states=bool(chosen),
                **({} if positions is None else {"position_ids": sent(positions, device)}),
                **({} if cache is None else {"past_key_values": cache}),
            )
        states: Tensor = last
        states = states.to(self.autocast or self.model.get_output_embeddings().weight.dtype)
        if self._bias_V is not None:
            states = F.pad(states, (0, 1), value=1.0)
        if self.logit_scale != 1:
            states = states * self.logit_scale
        return states, [each[layer] for layer in chosen]

    def _read(self, **inputs: Any) -> tuple[Tensor, Any]:
        """The last hidden states, and those of all layers if they are asked for."""
        if (read := getattr(self.model, READ, None)) is not None:
            whole: tuple[Tensor, Any] = read(**inputs)
            return whole
        out = _transformer(self.model)(**inputs)
        return out.last_hidden_state, out.hidden_states

    def divide(self, mesh: Any) -> None:
        """Divide the weights in place among ranks.

        Args:
            mesh: the ranks; None if transformers has divided the weights while it read them.
        """
        blocks = [module for module in self.model.modules() if isinstance(module, GradientCheckpointingLayer)]
        if mesh is None:
            add_read(self.model, _transformer(self.model), blocks)
        else:
            divide(self.model, _transformer(self.model), blocks, mesh, self.autocast)

    def train(self) -> None:
        """Prepare for forward passes with gradients, without the model's own dropout.

        Rollouts are sampled without dropout. With it, losses would read another distribution, and a student equal to
        its teacher would drift. ``lora.dropout`` stays on: the run file asks for it.
        """
        self.model.eval()
        for name, module in self.model.named_modules():
            recomputed = isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing
            if recomputed or "lora_dropout" in name:
                module.training = True  # of this module alone; transformers recomputes layers that are in training

    def save(self, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
        """Write a model folder with the tokenizer; of a ``PeftModel`` the adapter's folder, or both with ``merge``.

        Args:
            state: the whole weights, if they are divided among processes.
        """
        self.model.eval()
        if adapted(self.model) and not self.merge:
            self.save_weights(folder)
            return
        _save_as(self.stored, merged(self.model), folder, state)
        self.tokenizer.save_pretrained(folder)
        if adapted(self.model):
            save_adapter(self.model, folder / ALONE)

    def save_weights(self, folder: Path, *, model: Any = None, state: Mapping[str, Tensor] | None = None) -> None:
        """Write the weights as they are in memory, for a checkpoint that ``from_pretrained`` loads.

        Args:
            model: a copy of the model, to write instead.
            state: the whole weights, if they are divided among processes.
        """
        disable_progress_bar()  # a run shows its own progress
        model = model or self.model
        if adapted(model):
            save_adapter(model, folder)
        else:
            model.save_pretrained(folder, state_dict=state)
        self.tokenizer.save_pretrained(folder)

    @property
    def num_layers(self) -> int:
        """Number of blocks."""
        number: int = self.model.config.get_text_config().num_hidden_layers
        return number

    @property
    def max_length(self) -> int | None:
        """Largest number of positions; None if the config does not give it."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)


def _save_as(dtype: torch.dtype | None, model: Any, folder: Path, state: Mapping[str, Tensor] | None) -> None:
    """Write the weights in a dtype, None for their own; config.json names the one in the files."""
    disable_progress_bar()  # a run shows its own progress
    if dtype in (None, model.dtype):
        model.save_pretrained(folder, state_dict=state)
        return
    cast: dict[tuple[Any, ...], Tensor] = {}

    def stored(tensor: Tensor) -> Tensor:
        # Tied weights stay one tensor, or both would be written.
        place = tensor.data_ptr(), tensor.shape, tensor.stride()
        return cast.setdefault(place, tensor.to(dtype) if tensor.is_floating_point() else tensor)

    whole = model.state_dict() if state is None else state
    model.save_pretrained(folder, state_dict={name: stored(tensor) for name, tensor in whole.items()})
    config = copy.deepcopy(model.config)
    config.dtype = str(dtype).removeprefix("torch.")
    config.save_pretrained(folder)


SMALL_MODEL = 20_000_000
"""Parameters below which a second CPU thread costs more time in waiting than it saves."""


def device_named(name: str) -> str:
    """The device's name; ``auto`` is a GPU if there is one.

    Raises:
        ConfigError: torch does not know the device, or cannot use it here.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name).cpu()
    except (RuntimeError, AssertionError, ValueError, NotImplementedError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"device: '{name}' cannot be used here ({reason}). Fix: set device=auto or cpu") from None
    return name


def set_threads(threads: int | None, model: nn.Module) -> None:
    """Use this number of CPU threads; by default one for a small model, and torch's choice for others."""
    if threads or sum(p.numel() for p in model.parameters()) < SMALL_MODEL:
        torch.set_num_threads(threads or 1)


def checkpoint_activations(language_model: LanguageModel) -> None:
    """Compute activations again in the backward pass instead of keeping them, by whichever name transformers has."""
    model = language_model.model
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable()


def stop_ids(language_model: LanguageModel) -> frozenset[int]:
    """Every id that ends a turn: of the generation config, the tokenizer's EOS and the chat template's turn end."""
    tokenizer = language_model.tokenizer
    configured = getattr(language_model.model.generation_config, "eos_token_id", None)
    ids: Iterable[int | None] = configured if isinstance(configured, (list, tuple)) else [configured]
    return frozenset(i for i in [*ids, tokenizer.eos_token_id, *Chat(tokenizer).turn_end_ids[-1:]] if i is not None)


def _transformer(model: Any) -> Any:
    """The module under the output head, which gives the last hidden states.

    ``base_model`` of a ``PeftModel`` is the adapter around the whole model, so it is unwrapped first. The adapter's
    layers stand inside.
    """
    whole = model.get_base_model() if adapted(model) else model
    return whole.base_model if whole.base_model is not whole else whole.get_decoder()


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
