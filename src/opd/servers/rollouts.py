"""The engine of rollouts by vLLM: ids in, ids and log-probabilities out, each answer of the weights that were sent."""

from __future__ import annotations

import hashlib
import math
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import torch

from opd.config.secrets import from_environment
from opd.config.served import ROLLOUT_KEY
from opd.data import strict_json
from opd.engines.hf import log_probs
from opd.errors import ConfigError, ModelError
from opd.models.language import LanguageModel, pad
from opd.servers.http import Answer, Refused
from opd.servers.push import FolderPush
from opd.servers.requests import TELL_EVERY_S, OtherWeights, Requests, WrongAnswer
from opd.types import Generation, Sampling

if TYPE_CHECKING:
    from torch import Tensor

KEY = "rollout.engine"

PROBE = 16
"""Tokens whose log-probabilities are compared after each push."""

WARM = Sampling(temperature=0.7, top_k=20)
"""A distribution by which processed log-probabilities differ from the model's own."""

MOST_BIASED = 4096
"""Rows of the head without a token that a request can name."""

GoOn = Callable[[int], tuple[Sequence[int], int] | None]
"""Takes a row whose generation was just handed on; gives its next context and budget, or None if it has ended."""


@dataclass(frozen=True)
class Pushed:
    """Weights that servers were given.

    Attributes:
        label: what a server calls them.
        path: their folder.
        reference_T: float32 [T], log-probabilities of the probe's tokens by the run's own forward pass.
    """

    label: str
    path: Path
    reference_T: Tensor


class VllmEngine:
    """Generates with servers of vLLM; see ``Engine``.

    Answers of other weights than those of the last ``sync`` are never used: a server that restarts is given them again.
    The same seed gives the same tokens from one server in float32 on a CPU, and on a GPU only with batch invariance.

    Args:
        model: the student.
        url: addresses of the servers.
        folder: for the weights; run and servers share it.
        name, tolerance, concurrency, timeout, wait, api_key_env: as in the run file.

    Attributes:
        max_length: tokens of the longest prompt and completion together; None if no server says.
        open: rollouts that are written with the weights of the last ``sync`` while others train; the next one waits.

    Raises:
        ModelError: a server does not answer, or has not the student's model.
    """

    reports = True
    independent = True
    """Whether ``generate`` takes ``go_on``, so that no row waits for the turn of another."""

    def __init__(
        self,
        model: LanguageModel,
        *,
        url: Sequence[str],
        folder: Path,
        name: str | None = None,
        tolerance: float = 0.1,
        concurrency: int = 256,
        timeout: float = 600.0,
        wait: float = 600.0,
        api_key_env: str = ROLLOUT_KEY,
    ) -> None:
        secret = from_environment(api_key_env, key=f"{KEY}.api_key_env", needed=api_key_env != ROLLOUT_KEY)
        self.requests = Requests(
            url, secret=secret, key=f"{KEY}.url", timeout=timeout, wait=wait, concurrency=concurrency
        )
        self.model, self.tolerance = model, tolerance
        self.push = FolderPush(model, folder, key=KEY)
        self.run = uuid.uuid4().hex[:8]
        self.count = 0
        self.pushed: Pushed | None = None
        self.seen: tuple[int, ...] = ()
        self.open: Future[Any] | None = None
        self._giving = threading.Lock()
        self.name = self._hello(name)
        self.probe = _probe(model)
        self.bias = _padding(model)

    # Weights

    def sync(self) -> None:
        """Send the weights if they have changed, and prove that the servers have them.

        Raises:
            ModelError: a server does not take them.
        """
        versions = tuple(p._version for p in self.model.model.parameters())
        if self.pushed and versions == self.seen:
            return
        if self.open:
            self.until_done(self.open)
        started = time.perf_counter()
        self.count += 1
        label = f"{self.run}-{self.count}"
        first = self.pushed is None
        self.pushed = Pushed(label, self.push.write(self.count), self._own_T())
        self.seen = versions
        for url in self.requests.urls:
            self._give(url, self.pushed)
            if first:
                self._prove_processed(url)
        self.requests.pushed_s += time.perf_counter() - started

    def until_done(self, future: Future[Any]) -> None:
        """Wait for rollouts; faults are passed on meanwhile."""
        while not wait([future], timeout=TELL_EVERY_S).done:
            self.requests.tell_faults()
        self.requests.tell_faults()

    def _give(self, url: str, weights: Pushed) -> None:
        """One server's push, whole, or an error."""
        route, body = self.push.load(weights.path, self.name)
        began = time.monotonic()
        while True:
            try:
                self._post(url, "pause?mode=wait")
                self._post(url, route, body)
                self._post(url, "update_weight_version", {"new_version": weights.label})
                self._post(url, "resume")
                self._compare(url, weights)
                return
            except Refused as error:
                if error.response.status_code in (403, 404):
                    raise ModelError(
                        f"{KEY}.url: '{url}' has no route /{route.partition('?')[0]} ({error.words}). Fix: start it as "
                        "opd doctor prints it, with VLLM_SERVER_DEV_MODE=1"
                    ) from None
                fault = error.words
            except (httpx.HTTPError, TimeoutError) as error:
                fault = self.requests.http.reason(error)
            except WrongAnswer as error:
                fault = str(error)
            self.requests.faults.append(f"'{url}' did not take the weights {weights.label}: {fault}")
            self.requests.tell_faults()
            if time.monotonic() - began > self.requests.wait:
                raise ModelError(
                    f"{KEY}.url: '{url}' has not taken the weights for {self.requests.wait:g} s ({fault}). Fix: "
                    "restart the server, and go on with --resume"
                )
            time.sleep(1.0)

    def _post(self, url: str, path: str, body: Mapping[str, Any] | None = None) -> Answer:
        return self.requests.once(path, dict(body or {}), url=url)

    def _compare(self, url: str, weights: Pushed) -> None:
        """The server's log-probabilities of the probe are the run's own.

        Raises:
            WrongAnswer: they are not.
        """
        settings = {"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0, "detokenize": False}
        answer = self._post(url, "inference/v1/generate", self._body(self.probe, settings))
        try:
            places = _json(answer)["prompt_logprobs"][1:]
            found = [float(place[str(i)]["logprob"]) for place, i in zip(places, self.probe[1:], strict=True)]
        except (KeyError, TypeError, ValueError, AttributeError):
            raise WrongAnswer("it gives no log-probabilities of a prompt") from None
        apart = float((torch.tensor(found) - weights.reference_T).abs().mean())
        if not apart <= self.tolerance:
            raise WrongAnswer(
                f"its log-probabilities are {apart:.2g} nats from the run's own, and {KEY}.tolerance is "
                f"{self.tolerance:g}{self._tied(weights)}"
            )

    def _tied(self, weights: Pushed) -> str:
        if not self.push.tied:
            return ""
        return f"; vLLM on a CPU keeps a tied head as it was, unless it is started with a folder like '{weights.path}'"

    @torch.no_grad()
    def _own_T(self) -> Tensor:
        """Log-probabilities of the probe's tokens after the first."""
        return _rows(self.model, self.probe).log_softmax(-1)[:-1].gather(1, torch.tensor(self.probe[1:])[:, None])[:, 0]

    @torch.no_grad()
    def _prove_processed(self, url: str) -> None:
        """Log-probabilities are those of the distribution that was drawn from, not the model's own.

        Raises:
            ModelError: they are not.
        """
        body = self._body(self.probe, self._settings(WARM, 12, frozenset(), 1))
        generation = self._read(self._post(url, "inference/v1/generate", body), 12, frozenset())
        logits = _rows(self.model, [*self.probe, *generation.ids])[len(self.probe) - 1 : -1]
        ids, given = torch.tensor(generation.ids)[:, None], torch.tensor(generation.logprobs)
        right = (log_probs(logits, WARM).gather(1, ids)[:, 0] - given).abs().mean()
        raw = (logits.log_softmax(-1).gather(1, ids)[:, 0] - given).abs().mean()
        if not float(right) <= max(self.tolerance, float(raw) / 2):
            raise ModelError(
                f"{KEY}.url: log-probabilities of '{url}' are not those of the distribution that it draws from. Fix: "
                "start it with --logprobs-mode processed_logprobs"
            )

    # Tokens

    def generate(
        self,
        contexts: Sequence[Sequence[int]],
        max_new_tokens: Sequence[int],
        *,
        sampling: Sampling,
        stop_ids: frozenset[int],
        seed: int,
        done: dict[int, Generation] | None = None,
        go_on: GoOn = lambda row: None,
    ) -> list[Generation]:
        """Continue each context; see ``Engine.generate``.

        Args:
            done: gets each generation, by row, when it ends.
            go_on: asked after that for the row's next turn.

        Returns:
            Each row's first generation.
        """
        done = {} if done is None else done
        first: dict[int, Generation] = {}
        turns = [0] * len(contexts)
        open_rows: dict[Future[Generation], int] = {}

        def ask(row: int, context: Sequence[int], budget: int) -> None:
            settings = self._settings(sampling, budget, stop_ids, _seed(seed, row, turns[row]))
            read = partial(self._read, budget=budget, stop_ids=stop_ids)
            future = self.requests.ask("inference/v1/generate", self._body(context, settings), read)
            open_rows[future] = row
            turns[row] += 1

        for row, (context, budget) in enumerate(zip(contexts, max_new_tokens, strict=True)):
            ask(row, context, budget)
        while open_rows:
            ended, _ = wait(open_rows, timeout=TELL_EVERY_S, return_when=FIRST_COMPLETED)
            self.requests.tell_faults()
            self._give_again()
            for future in sorted(ended, key=lambda one: open_rows[one]):
                row = open_rows.pop(future)
                generation = future.result()
                first.setdefault(row, generation)
                done[row] = generation
                if following := go_on(row):
                    ask(row, *following)
        return [first[row] for row in range(len(contexts))]

    def _give_again(self) -> None:
        """Send the weights to a server that answered with others, as it does after a restart."""
        with self._giving:
            while self.requests.stale and not self.requests.ended:
                url = self.requests.stale.pop()
                if self.pushed:
                    self._give(url, self.pushed)

    def _body(self, ids: Sequence[int], settings: Mapping[str, Any]) -> dict[str, Any]:
        return {"model": self.name, "token_ids": list(ids), "sampling_params": dict(settings)}

    def _settings(self, sampling: Sampling, budget: int, stop_ids: frozenset[int], seed: int) -> dict[str, Any]:
        return {
            "max_tokens": budget,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
            "seed": seed,
            "logprobs": 0,
            "stop_token_ids": sorted(stop_ids),
            "ignore_eos": True,  # the run's own ends are all in stop_token_ids
            "detokenize": False,
            **({"logit_bias": self.bias} if self.bias else {}),
        }

    def _read(self, answer: Answer, budget: int, stop_ids: frozenset[int]) -> Generation:
        """The one generation of an answer.

        Raises:
            WrongAnswer: it is not whole, not of these weights, or its log-probabilities are none.
        """
        try:
            choice = _json(answer)["choices"][0]
            ids = [int(i) for i in choice["token_ids"]]
            content = [(int(one["token_id"]), float(one["logprob"])) for one in choice["logprobs"]["content"]]
            labels = {span["version"] for span in choice["weight_versions"]}
            ended = choice["finish_reason"]
        except (KeyError, IndexError, TypeError, ValueError, AttributeError):
            raise WrongAnswer(f"it gave no tokens with log-probabilities: {answer.text[:100]}") from None
        if self.pushed is None or labels != {self.pushed.label}:
            raise OtherWeights(f"it wrote with the weights {', '.join(map(str, labels))}")
        if [i for i, _ in content] != ids or not 1 <= len(ids) <= budget:
            raise WrongAnswer(f"it gave {len(ids)} tokens and {len(content)} log-probabilities, of at most {budget}")
        if not all(math.isfinite(value) and value <= 1e-4 for _, value in content):
            raise WrongAnswer("a log-probability is no finite number up to 0")
        if min(ids) < 0 or max(ids) >= self.model.rows or any(i in stop_ids for i in ids[:-1]):
            raise WrongAnswer("it gave a token that it was not to give")
        stopped = ids[-1] in stop_ids
        if not stopped and (ended != "length" or len(ids) < budget):
            raise WrongAnswer(f"it ended after {len(ids)} of {budget} tokens ({ended})")
        return Generation(tuple(ids), tuple(min(value, 0.0) for _, value in content), stopped)

    # At the start

    def _hello(self, name: str | None) -> str:
        """The served model's name; that of the adapter, if the student is one.

        Raises:
            ModelError: a server does not answer, or has no such model.
        """
        names, lengths = [], []
        for url in self.requests.urls:
            try:
                listed = {one["id"]: one for one in _json(self.requests.once("v1/models", url=url))["data"]}
                names.append(name or next(iter(listed)))
            except (httpx.HTTPError, TimeoutError) as error:
                raise self.requests.failure(url, error) from None
            except (WrongAnswer, KeyError, StopIteration, TypeError):
                raise ModelError(f"{KEY}.url: '{url}' lists no models. Fix: correct {KEY}.url") from None
            if names[-1] not in listed:
                raise ModelError(
                    f"{KEY}.name: '{url}' has the models {', '.join(listed)}, and no '{names[-1]}'. Fix: correct it"
                )
            lengths.append(listed[names[-1]].get("max_model_len"))
        self.max_length = min((n for n in lengths if n is not None), default=None)
        if len(set(names)) > 1:
            raise ConfigError(f"{KEY}.name: the servers name their models {', '.join(names)}. Fix: serve one name")
        return "opd-student" if self.push.adapter else names[0]


def _json(answer: Answer) -> Any:
    try:
        return strict_json.parse(answer.body)
    except ValueError as error:
        raise WrongAnswer(f"its answer is no JSON ({error})") from None


def _seed(seed: int, row: int, turn: int) -> int:
    """A seed of 31 bits for one row and turn."""
    digest = hashlib.blake2b(f"{seed} {row} {turn}".encode(), digest_size=4).digest()
    return int.from_bytes(digest) & 0x7FFFFFFF


def _probe(model: LanguageModel) -> list[int]:
    """Ids that differ, spread over the vocabulary."""
    return [(7919 * n + 3) % model.rows for n in range(PROBE)]


def _padding(model: LanguageModel) -> dict[str, float]:
    """A bias against rows of the head that no token has, which the run never samples.

    Raises:
        ModelError: there are too many of them.
    """
    rows = len(model.model.get_output_embeddings().weight)
    if rows - model.rows > MOST_BIASED:
        raise ModelError(
            f"{KEY}: the student's head has {rows - model.rows} rows that no token has, too many for requests. Fix: "
            "cut the head, or set rollout.engine=hf"
        )
    return {str(i): -100.0 for i in range(model.rows, rows)}


def _rows(model: LanguageModel, ids: Sequence[int]) -> Tensor:
    """The student's logits at every position, float32 [L, V], on the CPU."""
    was_training = model.model.training
    model.model.eval()
    states = model.hidden(*pad([ids], left=False, device=model.device))[0]
    model.model.train(was_training)
    return (states @ model.head_VD.to(states.dtype).T).float().cpu()
