"""``opd serve``: models that teachers' clients read over HTTP. See ``wire`` for the format.

It sends the rows that are wanted, the states of chosen blocks or log-probabilities of given tokens if they are asked
for, and a label of the weights. Every request is bounded; a wrong one is answered with one sentence.
"""

from __future__ import annotations

import secrets
import socket
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, StrictInt, ValidationError
from torch import Tensor

from opd.config.secrets import Secret
from opd.data import strict_json
from opd.errors import ConfigError
from opd.losses import token_logprobs
from opd.models.language import LanguageModel
from opd.models.packing import lay_out, passes
from opd.models.weights import label
from opd.servers.states import fingerprint
from opd.servers.wire import DTYPES, METADATA, OPD, Item, metadata

MAX_SEQUENCES = 64
"""Sequences of one request; the header names each."""

MAX_BODY = 64_000_000
"""Bytes of the largest request: some million token ids."""


class Wanted(BaseModel):
    """What `opd serve` adds to a question."""

    model_config = ConfigDict(extra="forbid")
    rows: list[list[tuple[StrictInt, StrictInt]]] | None = None
    """Half-open ranges of positions of each sequence; None for all positions."""
    blocks: list[StrictInt] = Field(default_factory=list)
    """Blocks, from 1, whose states are wanted in place of the last ones."""
    tokens: list[list[list[StrictInt]]] | None = None
    """Of each sequence and wanted row, tokens whose log-probabilities after that row are wanted in place of states;
    the answer has them end to end, as float32."""


class Question(BaseModel):
    """The body of a request."""

    model_config = ConfigDict(extra="ignore")
    model: str
    input: list[list[StrictInt]] = Field(min_length=1, max_length=MAX_SEQUENCES)
    task: str = "token_embed"
    use_activation: bool = False
    encoding_format: str = "bytes"
    embed_dtype: str = "bfloat16"
    endianness: str = "little"
    opd: Wanted = Wanted()


@dataclass(frozen=True)
class Model:
    """A model with the facts that a client asks for."""

    language_model: LanguageModel
    weights: str
    tokens: str

    @classmethod
    def of(cls, language_model: LanguageModel) -> Model:
        """A loaded model."""
        weights = label(language_model.model.named_parameters(), language_model.logit_scale)
        return cls(language_model, weights, fingerprint(language_model.tokenizer))


class BadQuestion(Exception):
    """A request that cannot be answered; the text is the sentence."""


def application(models: Mapping[str, LanguageModel], *, secret: Secret | None, max_tokens: int = 16_384) -> FastAPI:
    """The server.

    Args:
        models: by the names that clients ask for.
        secret: the key that every request has to carry; None for none.
        max_tokens: most tokens of a forward pass, padding included.
    """
    known = {name: Model.of(model) for name, model in models.items()}
    turn = threading.Lock()  # one forward pass at a time
    app = FastAPI(title="opd serve", docs_url=None, redoc_url=None, openapi_url=None)

    @app.middleware("http")
    async def guard(request: Request, go_on: Any) -> Response:
        given = request.headers.get("authorization", "")
        if secret and not secrets.compare_digest(given.encode(), f"Bearer {secret.reveal()}".encode()):
            return _refusal(401, "the key is missing or wrong")
        answer: Response = await go_on(request)
        return answer

    @app.get("/health")
    async def health() -> Response:
        return Response("ok")

    @app.get("/v1/models")
    async def listed() -> JSONResponse:
        return JSONResponse({"object": "list", "data": [_listed(name, model) for name, model in known.items()]})

    @app.post("/pooling")
    async def pooling(request: Request) -> Response:
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > MAX_BODY:
                return _refusal(413, f"the request has more than {MAX_BODY:,} bytes")
        try:
            question = Question.model_validate(strict_json.parse(bytes(body)))
            model = known.get(question.model)
            if model is None:
                return _refusal(404, f"there is no model '{question.model}' ({', '.join(known)})")
            _check(question, model.language_model)
            found = await run_in_threadpool(_read, model.language_model, question, turn, max_tokens)
        except ValidationError as error:
            first = error.errors()[0]
            return _refusal(400, f"{'.'.join(map(str, first['loc']))}: {first['msg']}")
        except (BadQuestion, ValueError) as error:
            return _refusal(400, str(error))
        return _answer(question, model, found)

    return app


def _refusal(status: int, text: str) -> JSONResponse:
    return JSONResponse({"error": {"message": text, "code": status}}, status)


def _listed(name: str, model: Model) -> dict[str, Any]:
    language_model = model.language_model
    facts = {"weights": model.weights, "tokens": model.tokens, "blocks": language_model.num_layers}
    facts["width"] = language_model.head_VD.shape[1]
    return {
        "id": name,
        "object": "model",
        "owned_by": OPD,
        "root": language_model.source,
        "max_model_len": language_model.max_length,
        OPD: facts,
    }


def _check(question: Question, model: LanguageModel) -> None:
    """Refuse what a forward pass could not read, before it is made.

    Raises:
        BadQuestion: the sentence says what is wrong.
    """
    if question.task != "token_embed" or question.use_activation:
        raise BadQuestion("only task=token_embed with use_activation=false is served")
    if question.encoding_format != "bytes" or question.endianness != "little":
        raise BadQuestion("states are sent as little-endian bytes alone (encoding_format=bytes, endianness=little)")
    if question.embed_dtype not in DTYPES:
        raise BadQuestion(f"embed_dtype is {' or '.join(DTYPES)}")
    known = len(model.model.get_input_embeddings().weight)
    for number, ids in enumerate(question.input):
        if not ids or min(ids) < 0 or max(ids) >= known:
            raise BadQuestion(f"input {number} has no ids, or one that is not from 0 to {known - 1}")
        if model.max_length is not None and len(ids) > model.max_length:
            raise BadQuestion(f"input {number} has {len(ids)} tokens, and the model takes {model.max_length}")
    for block in question.opd.blocks:
        if not 1 <= block <= model.num_layers:
            raise BadQuestion(f"there is no block {block} (1 to {model.num_layers})")
    rows = question.opd.rows
    if rows is not None and len(rows) != len(question.input):
        raise BadQuestion(f"rows of {len(rows)} sequences are asked for, and {len(question.input)} are given")
    for number, (spans, ids) in enumerate(zip(rows or (), question.input, strict=False)):
        ends = [place for span in spans for place in span]
        if ends != sorted(ends) or (ends and not 0 <= ends[0] <= ends[-1] <= len(ids)):
            raise BadQuestion(f"the rows of input {number} are no rising ranges within its {len(ids)} tokens")
    if question.opd.tokens is not None:
        if question.opd.blocks:
            raise BadQuestion("tokens have log-probabilities after the last block alone: leave blocks out")
        if [len(tokens) for tokens in question.opd.tokens] != [len(rows) for rows in _rows(question)]:
            raise BadQuestion("tokens are given for other rows than those that are wanted")
        if any(not 0 <= token < model.rows for rows in question.opd.tokens for tokens in rows for token in tokens):
            raise BadQuestion(f"a token of tokens is not from 0 to {model.rows - 1}")


def _rows(question: Question) -> list[list[int]]:
    """The wanted rows of each sequence."""
    rows = question.opd.rows or [[(0, len(ids))] for ids in question.input]
    return [[row for start, stop in spans for row in range(start, stop)] for spans in rows]


def _read(model: LanguageModel, question: Question, turn: threading.Lock, max_tokens: int) -> list[Tensor]:
    """States of the wanted rows of each sequence, or log-probabilities of tokens after them, on the CPU."""
    with turn, torch.no_grad():
        found = states_at(model, question.input, _rows(question), question.opd.blocks, max_tokens=max_tokens)
        if question.opd.tokens is None:
            return found
        head_VD, logprobs = model.head_VD, []
        for states, tokens in zip(found, question.opd.tokens, strict=True):
            row_T = torch.tensor([row for row, ids in enumerate(tokens) for _ in ids], dtype=torch.int64)
            token_T = torch.tensor([token for ids in tokens for token in ids], dtype=torch.int64)
            logprobs.append(token_logprobs(states[row_T].to(head_VD), head_VD, token_T.to(head_VD.device)).cpu())
        return logprobs


@torch.no_grad()
def states_at(
    model: LanguageModel,
    inputs: Sequence[Sequence[int]],
    rows: Sequence[Sequence[int]],
    blocks: Sequence[int] = (),
    *,
    max_tokens: int,
) -> list[Tensor]:
    """States at some positions of some sequences, on the CPU: last ones [rows, D], or of K blocks [rows, K, D]."""
    found: list[Tensor] = [torch.empty(0)] * len(inputs)
    for packed in passes(model, [len(ids) for ids in inputs], max_tokens):
        ids_BL, mask_BL, positions_BL = lay_out(model, [[inputs[index] for index in row] for row in packed])
        hidden_BLD, chosen = model.layers(ids_BL, mask_BL, blocks, positions_BL)
        states = torch.stack(chosen, 2) if blocks else hidden_BLD
        for number, row in enumerate(packed):
            start = 0
            for index in row:
                places = torch.tensor(rows[index], dtype=torch.int64, device=states.device) + start
                found[index] = states[number, places].cpu()
                start += len(inputs[index])
    return found


def _answer(question: Question, model: Model, found: Sequence[Tensor]) -> Response:
    items, body = [], bytearray()
    dtype = DTYPES[question.embed_dtype] if question.opd.tokens is None else torch.float32
    for states in found:
        raw = states.to(dtype).contiguous().view(torch.uint8).numpy().tobytes()
        items.append(Item(len(body), len(body) + len(raw), tuple(states.shape)))
        body += raw
    tokens = sum(map(len, question.input))
    head = metadata(items, model=question.model, tokens=tokens, weights=model.weights)
    return Response(bytes(body), media_type="application/octet-stream", headers={METADATA: head})


def listening(host: str, port: int) -> socket.socket:
    """A socket at an address.

    Raises:
        ConfigError: it cannot be had.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"host, port: '{host}:{port}' cannot be listened at ({error}). Fix: choose another port, or host=127.0.0.1"
        ) from None
