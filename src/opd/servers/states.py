"""The client of servers that read a teacher's model: vLLM's pooling servers and `opd serve`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import httpx
import torch
from torch import Tensor

from opd.config.secrets import from_environment, redact_sentence
from opd.config.served import TEACHER_KEY, ServedConfig
from opd.data import strict_json
from opd.errors import ModelError
from opd.output.provenance import NOISE
from opd.servers.http import Answer
from opd.servers.requests import Requests, WrongAnswer
from opd.servers.wire import OPD, Sequences, header, question, ranges, tensors

PROBE = 8
"""Tokens whose states are compared at the start, and in each answer of a server that does not label its weights."""

SKETCH = 64
"""Units of the probe's last state that a run keeps."""


@dataclass(frozen=True)
class Served:
    """What a server says of its model.

    Attributes:
        name: of the model.
        max_length: tokens of the longest sequence; None if it does not say.
        weights: label of the weights; None for a server that has none.
        blocks: number of blocks whose states it gives; 0 for none.
    """

    name: str
    max_length: int | None
    weights: str | None
    blocks: int


class StateServers:
    """Asks for hidden states.

    Args:
        settings: of the run file.
        width: hidden units.
        bias: whether the output head has a bias, for which `opd serve` adds a unit.
        tokenizer: of the model that is expected.
        key: the run file's key, for error messages.

    Raises:
        ModelError: a server does not answer, or has another model.
    """

    def __init__(self, settings: ServedConfig, *, width: int, bias: bool, tokenizer: Any, key: str) -> None:
        secret = from_environment(
            settings.api_key_env, key=f"{key}.api_key_env", needed=settings.api_key_env != TEACHER_KEY
        )
        self.requests = Requests(
            settings.url,
            secret=secret,
            key=f"{key}.url",
            timeout=settings.timeout,
            wait=settings.wait,
            concurrency=settings.concurrency,
        )
        self.settings, self.width, self.bias, self.key = settings, width, bias, key
        self.probe = _probe(tokenizer)
        self.reference: Tensor | None = None
        found = [self._hello(url, tokenizer) for url in self.requests.urls]
        self.served = found[0]
        lengths = [one.max_length for one in found if one.max_length is not None]
        self.max_length = min(lengths, default=None)

    @property
    def labelled(self) -> bool:
        """Whether the servers are `opd serve`: they label their weights, and send the rows that are wanted alone."""
        return self.served.weights is not None

    @property
    def label(self) -> str | list[float]:
        """What tells these weights from others: the servers' label, or some of the probe's states."""
        if self.served.weights is not None:
            return self.served.weights
        assert self.reference is not None
        last_D = self.reference[-1]
        return [float(f"{value:.4g}") for value in last_D[:: max(len(last_D) // SKETCH, 1)].tolist()]

    def ask(self, sequences: Sequences, blocks: Sequence[int] = ()) -> Future[list[Tensor]]:
        """States at some positions of some sequences, in the background.

        Args:
            sequences: ids, and the wanted positions of each in rising order.
            blocks: whose states to give in place of the last ones after the final norm.

        Returns:
            Of each sequence [rows, D], or [rows, K, D] for K blocks.
        """
        inputs = [list(ids[: max(rows) + 1]) for ids, rows in sequences]
        if self.labelled:
            body = question(self.served.name, inputs, self.settings.states)
            body[OPD] = {"rows": [ranges(rows) for _, rows in sequences], "blocks": list(blocks)}
            inner = (len(blocks), self.width) if blocks else (self.width + self.bias,)
            shapes = [(len(rows), *inner) for _, rows in sequences]
            return self.requests.ask("pooling", body, lambda answer: self._labelled(answer, inputs, shapes))
        body = question(self.served.name, [*inputs, self.probe], self.settings.states)
        wanted = [torch.tensor(rows, dtype=torch.int64) for _, rows in sequences]

        def read(answer: Answer) -> list[Tensor]:
            *states, probed = self._whole(answer, [*inputs, self.probe], self.width)
            self._compare(probed)
            return [one[rows] for one, rows in zip(states, wanted, strict=True)]

        return self.requests.ask("pooling", body, read)

    def _whole(self, answer: Answer, inputs: Sequence[Sequence[int]], width: int) -> list[Tensor]:
        """States of all tokens."""
        shapes = [(len(ids), width) for ids in inputs]
        return tensors(answer, self.settings.states, tokens=sum(map(len, inputs)), shapes=shapes)

    def _labelled(self, answer: Answer, inputs: Sequence[Sequence[int]], shapes: list[tuple[int, ...]]) -> list[Tensor]:
        if (label := label_of(answer)) != self.served.weights:
            raise WrongAnswer(f"its weights are {label}, and the run began with {self.served.weights}")
        return tensors(answer, self.settings.states, tokens=sum(map(len, inputs)), shapes=shapes)

    def _compare(self, probed: Tensor) -> None:
        """The probe's states are those of the start.

        Raises:
            WrongAnswer: the server has other weights.
        """
        assert self.reference is not None
        if not float((probed.float() - self.reference).norm() / self.reference.norm()) <= NOISE:
            raise WrongAnswer("its weights are not those that the run began with")

    # At the start

    def _hello(self, url: str, tokenizer: Any) -> Served:
        """Check one server.

        Raises:
            ModelError: it does not answer, or has another model; the sentence names the key.
        """
        try:
            served = self._model(url, tokenizer)
            body = question(served.name, [self.probe], self.settings.states)
            answer = self.requests.once("pooling", body, url=url)
            units = self.width if served.weights is None else self.width + self.bias
            (states,) = self._whole(answer, [self.probe], units)
            if self.reference is None:
                self.reference = states.float()
            if served.weights is not None and label_of(answer) != served.weights:
                raise WrongAnswer("it changed its weights while it was asked")
            self._compare(states)
        except WrongAnswer as error:
            raise ModelError(
                f"{self.key}.url: '{url}' does not serve this teacher: {redact_sentence(str(error))}. Fix: serve "
                f"{self.key.removesuffix('.served')}.model with opd serve, or with vLLM as opd doctor prints it"
            ) from None
        except (httpx.HTTPError, TimeoutError) as error:
            raise self.requests.failure(url, error) from None
        return served

    def _model(self, url: str, tokenizer: Any) -> Served:
        try:
            listed = strict_json.parse(self.requests.once("v1/models", url=url).body)["data"]
            models = {one["id"]: one for one in listed}
        except (ValueError, KeyError, TypeError):
            raise WrongAnswer("it lists no models") from None
        name = self.settings.name or next(iter(models), "")
        if name not in models or (self.settings.name is None and len(models) > 1):
            raise ModelError(
                f"{self.key}.name: '{url}' has the models {', '.join(models)} (asked for "
                f"{self.settings.name or 'the only one'}). Fix: name one of them"
            )
        facts = models[name].get(OPD)
        if facts is None:
            self._same_ids(url, name, tokenizer)
            return Served(name, models[name].get("max_model_len"), None, 0)
        if facts.get("tokens") != fingerprint(tokenizer):
            raise WrongAnswer("its tokenizer is another one")
        return Served(name, models[name].get("max_model_len"), facts["weights"], facts["blocks"])

    def _same_ids(self, url: str, name: str, tokenizer: Any) -> None:
        """A server of vLLM reads a text as the same tokens.

        Raises:
            WrongAnswer: it reads others.
        """
        text = tokenizer.decode(self.probe)
        ours = tokenizer(text, add_special_tokens=False)["input_ids"]
        body = {"model": name, "prompt": text, "add_special_tokens": False}
        try:
            theirs = strict_json.parse(self.requests.once("tokenize", body, url=url).body)["tokens"]
        except (ValueError, KeyError, TypeError):
            raise WrongAnswer("it does not say how it reads a text") from None
        if theirs != ours:
            raise WrongAnswer(f"it reads {text!r} as {theirs} in place of {ours}, so its tokenizer is another one")


def label_of(answer: Answer) -> str | None:
    """The label of the weights that answered; None without one.

    Raises:
        WrongAnswer: there is no header.
    """
    own = header(answer).get(OPD)
    return own.get("weights") if isinstance(own, dict) else None


def fingerprint(tokenizer: Any) -> str:
    """A hash of a tokenizer's tokens and their ids."""
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()[:16]


def _probe(tokenizer: Any) -> list[int]:
    """Ids of ordinary tokens, spread over the vocabulary."""
    special = set(tokenizer.all_special_ids)
    ids = sorted(i for i in tokenizer.get_vocab().values() if i not in special)
    return [ids[(2 * n + 1) * len(ids) // (2 * PROBE)] for n in range(PROBE)]
