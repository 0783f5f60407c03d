"""A stand-in for vLLM's rollout server: its routes, a real model behind them, and faults that a test plans."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import socket
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from safetensors.torch import load_file

from opd.engines.hf import HFEngine
from opd.models.language import LanguageModel, pad
from opd.types import Sampling


class RolloutServer:
    """Generates with the weights that it was given last.

    Attributes:
        faults: each answer takes the next: ``503``, ``cut``, ``missing``, ``other``, ``raw``, or an empty one for none.
        seen: routes of the requests so far.
        stuck: rows whose first ids these are wait until ``free`` is set.
    """

    def __init__(
        self, model: LanguageModel, *, dev: bool = True, raw: bool = False, max_length: int | None = None
    ) -> None:
        self.start = self.model = model
        self.label, self.faults, self.seen = "default", deque[str](), list[str]()
        self.raw, self.half = raw, False
        self.delays: dict[int, float] = {}
        """Seconds before the n-th generation."""
        self.count = 0
        self.turn = threading.Lock()
        app = FastAPI()
        app.middleware("http")(self._note)
        app.get("/v1/models")(lambda: {"data": [{"id": "student", "max_model_len": max_length}]})
        app.post("/inference/v1/generate")(self.generate)
        if dev:
            app.post("/pause")(self.nothing)
            app.post("/resume")(self.nothing)
            app.post("/collective_rpc")(self.reload)
            app.post("/update_weight_version")(self.name)
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        settings: dict[str, Any] = {"lifespan": "off", "timeout_graceful_shutdown": 0, "log_level": "critical"}
        self.uvicorn = uvicorn.Server(uvicorn.Config(app, **settings))
        self.thread = threading.Thread(target=self.uvicorn.run, args=([self.socket],), daemon=True)
        self.thread.start()
        while not self.uvicorn.started:
            time.sleep(0.005)

    async def _note(self, request: Request, go_on: Any) -> Response:
        self.seen.append(request.url.path)
        answer: Response = await go_on(request)
        return answer

    def restart(self) -> None:
        """As after a crash: the weights that it was started with, and no label."""
        self.model, self.label = self.start, "default"

    async def reload(self, request: Request) -> Response:
        folder = (await request.json())["kwargs"]["weights_path"]
        given: dict[str, torch.Tensor] = {}
        for file in Path(folder).glob("*.safetensors"):
            given |= load_file(file)
        model = copy.deepcopy(self.model.model)
        assert given.keys() == model.state_dict().keys()
        if self.half:  # some tensors are left as they were, and the answer is 200
            self.half = False
            given = {name: value for name, value in given.items() if "layers" in name}
        model.load_state_dict(given, strict=False)
        self.model = dataclasses.replace(self.model, model=model)
        return JSONResponse({})

    async def nothing(self) -> dict[str, str]:
        return {}

    async def name(self, request: Request) -> Response:
        self.label = (await request.json())["new_version"]
        return JSONResponse({})

    async def generate(self, request: Request) -> Response:
        body = await request.json()
        ids, wanted = body["token_ids"], body["sampling_params"]
        probing = "prompt_logprobs" in wanted
        fault = self.faults.popleft() if self.faults and not probing else ""
        if fault == "503":
            return Response("not now", 503)
        if not probing:
            self.count += 1
            await asyncio.sleep(self.delays.get(self.count, 0.0))
        label = self.label
        answer = await asyncio.to_thread(self._answer, ids, wanted, probing)
        choice = answer["choices"][0]
        choice["weight_versions"] = [{"version": "default" if fault == "other" else label, "start": 0}]
        if fault == "missing":
            choice["logprobs"]["content"].pop()
        if fault == "cut":
            choice["token_ids"].pop()
            choice["logprobs"]["content"].pop()
        return JSONResponse(answer)

    def _answer(self, ids: list[int], wanted: Any, probing: bool) -> Any:
        sampling = Sampling(
            temperature=wanted["temperature"], top_p=wanted.get("top_p", 1.0), top_k=max(wanted.get("top_k", 0), 0)
        )
        stops = frozenset(wanted.get("stop_token_ids", ()))
        with self.turn:
            (one,) = HFEngine(self.model).generate(
                [ids], [wanted["max_tokens"]], sampling=sampling, stop_ids=stops, seed=wanted.get("seed", 0)
            )
            whole = self._log_probs([*ids, *one.ids])
        given = [float(whole[len(ids) - 1 + n, i]) for n, i in enumerate(one.ids)] if self.raw else one.logprobs
        content = [{"token_id": i, "logprob": p} for i, p in zip(one.ids, given, strict=True)]
        choice = {"token_ids": list(one.ids), "logprobs": {"content": content}}
        choice["finish_reason"] = "stop" if one.stopped else "length"
        prompt = [None, *({str(i): {"logprob": float(whole[n, i])}} for n, i in enumerate(ids[1:]))]
        return {"choices": [choice], "prompt_logprobs": prompt if probing else None}

    @torch.no_grad()
    def _log_probs(self, ids: list[int]) -> torch.Tensor:
        batch, mask = pad([ids], left=False, device=torch.device("cpu"))
        logits: torch.Tensor = self.model.model(input_ids=batch, attention_mask=mask).logits[0]
        return logits.float().log_softmax(-1)

    def stop(self) -> None:
        self.uvicorn.should_exit = True
        self.thread.join()
        self.socket.close()

    def __enter__(self) -> RolloutServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
