"""A teacher's model behind servers: config, tokenizer and output head are here, its blocks are there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import Future
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from opd.config.served import ServedConfig
from opd.errors import ConfigError, ModelError, OpdError
from opd.models.bundled import resolve
from opd.models.folders import base_of, file_in
from opd.models.inspection import SCALES, not_causal
from opd.models.language import LanguageModel
from opd.models.loading import unloadable
from opd.servers.later import Later
from opd.servers.states import StateServers
from opd.servers.wire import Sequences

asking_ahead: ContextVar[bool] = ContextVar("asking_ahead", default=False)
"""Whether answers are kept until they are asked for again; each thread has a value of its own."""


Asked = tuple[Future[list[Tensor]], int]


class HeadOnly(nn.Module):
    """The output head of a model, with its config; the rest is elsewhere."""

    def __init__(self, config: Any, generation_config: Any, head: nn.Linear) -> None:
        super().__init__()
        self.config, self.generation_config, self.head = config, generation_config, head

    def get_output_embeddings(self) -> nn.Linear:
        """The head."""
        return self.head


@dataclass(frozen=True)
class ServedModel(LanguageModel):
    """A model that servers read. It scores and does not write.

    Attributes:
        server: asks the servers.
        asked: sequences asked for ahead of time: the answer, and the place in it. Each is given once.
    """

    server: StateServers = field(kw_only=True)
    asked: dict[Any, Asked] = field(default_factory=dict, kw_only=True)

    @property
    def is_served(self) -> bool:
        return True

    @property
    def max_length(self) -> int | None:
        """The shorter of the config's and the servers' lengths."""
        known = [n for n in (super().max_length, self.server.max_length) if n is not None]
        return min(known, default=None)

    def states(self, groups: Sequence[Sequences], order_T: Tensor, blocks: Sequence[int] = ()) -> Later:
        """Ask for states, in one request what is not asked for yet of each group, and return without waiting.

        Args:
            groups: sequences and their wanted positions.
            order_T: int64 [T], the result's rows among those of all groups end to end.
            blocks: whose states to give; none for the last ones.

        Raises:
            ConfigError: the servers do not give blocks' states.
        """
        if blocks and max(blocks) > self.server.served.blocks:
            raise ConfigError(
                f"loss.signal=hidden reads the states of blocks, and '{self.server.requests.urls[0]}' gives last "
                "states alone. Fix: serve the teacher with opd serve, or set loss.signal=full"
            )
        found: list[Asked] = []
        for group in groups:
            keys = [(tuple(ids), tuple(rows), tuple(blocks)) for ids, rows in group]
            here = {key: self.asked.pop(key) for key in keys if key in self.asked}
            missing = [index for index, key in enumerate(keys) if key not in here]
            if missing:
                future = self.server.ask([group[index] for index in missing], blocks)
                here |= {keys[index]: (future, place) for place, index in enumerate(missing)}
            if asking_ahead.get():
                self.asked.update(here)
            found += [here[key] for key in keys]
        width = self.head_VD.shape[1]
        inner = (len(blocks), self.width) if blocks else (width,)
        empty = torch.empty(0, *inner, dtype=self.head_VD.dtype, device=self.device)
        sizes = [len(rows) for group in groups for _, rows in group]
        return Later([partial(self._arrived, *one) for one in found], sizes, order_T, empty)

    def _arrived(self, future: Future[list[Tensor]], place: int) -> Tensor:
        states = self.server.requests.result(future)[place]
        bias = self.has_bias and states.dim() == 2 and not self.server.labelled
        return nn.functional.pad(states, (0, 1), value=1.0) if bias else states


def load_served(
    name: str, settings: ServedConfig, *, key: str, dtype: str = "float32", device: str = "cpu"
) -> ServedModel:
    """The head, config and tokenizer of a model, and its servers, which are checked.

    Args:
        name: the run file's value of ``model``.
        key: the run file's key of the teacher, such as ``teacher`` or ``teacher.models.maths``.

    Raises:
        OpdError: the model cannot be read, its logits are no product of states and head, or a server has another one.
    """
    path = resolve(name)
    base = resolve(base_of(path) or path)
    try:
        config = AutoConfig.from_pretrained(base, trust_remote_code=False)
        if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
            raise not_causal(f"{key}.model", name, config.model_type)
        tokens = path if file_in(path, "tokenizer_config.json") else base
        tokenizer = AutoTokenizer.from_pretrained(tokens, trust_remote_code=False)
        head = _head(config, base, getattr(torch, dtype), device)
        generation = GenerationConfig.from_model_config(config)
        if file_in(base, "generation_config.json"):
            generation = GenerationConfig.from_pretrained(base)
    except OpdError:
        raise
    except Exception as error:  # a damaged folder raises almost anything
        raise unloadable(f"{key}.model", name, error) from error
    bias = head.bias is not None
    server = StateServers(settings, width=head.in_features, bias=bias, tokenizer=tokenizer, key=f"{key}.served")
    if not server.labelled:
        check_linear(config.get_text_config(), name, key=f"{key}.served")
    return ServedModel(HeadOnly(config, generation, head), tokenizer, name, server=server)


def _head(config: Any, base: str, dtype: torch.dtype, device: str) -> nn.Linear:
    """The output head, from its own file alone."""
    with torch.device("meta"):
        whole = AutoModelForCausalLM.from_config(config)
    shape = whole.get_output_embeddings()
    names = dict(whole.named_parameters(remove_duplicate=False))
    tied = config.get_text_config().tie_word_embeddings
    same = [shape.weight, whole.get_input_embeddings().weight] if tied else [shape.weight]
    weight = _stored(base, [name for name, p in names.items() if any(p is one for one in same)])
    bias = None if shape.bias is None else _stored(base, [name for name, p in names.items() if p is shape.bias])
    head = nn.Linear(shape.in_features, shape.out_features, bias=bias is not None, device="meta")
    head.weight = nn.Parameter(weight.to(device, dtype), requires_grad=False)
    if bias is not None:
        head.bias = nn.Parameter(bias.to(device, dtype), requires_grad=False)
    if head.weight.shape != shape.weight.shape:
        raise ValueError(
            f"its head has the shape {list(weight.shape)}, and config.json asks for {list(shape.weight.shape)}"
        )
    return head


def _stored(base: str, names: Sequence[str]) -> Tensor:
    """The first of these tensors that the model's files have."""
    index = file_in(base, SAFE_WEIGHTS_INDEX_NAME)
    where = json.loads(index.read_text())["weight_map"] if index else dict.fromkeys(names, SAFE_WEIGHTS_NAME)
    for name in names:
        file = file_in(base, where[name]) if name in where else None
        if file is None:
            continue
        with safe_open(file, "pt") as opened:
            if name in set(opened.keys()):
                tensor: Tensor = opened.get_tensor(name)
                return tensor
    raise ValueError(f"its safetensors files have no tensor {' or '.join(names)}")


def check_linear(config: Any, name: str, *, key: str) -> None:
    """A server that gives states alone serves a model whose logits are its states times its head.

    Raises:
        ModelError: the config names a cap or a scale.
    """
    for setting in ("final_logit_softcapping", *SCALES):
        value = getattr(config, setting, None)
        if value not in (None, 1, 1.0, False):
            raise ModelError(
                f"{key}: the config of '{name}' has {setting}={value}, which the states of a pooling server do not "
                "show. Fix: serve it with opd serve"
            )
