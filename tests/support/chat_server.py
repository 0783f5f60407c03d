"""A real OpenAI-compatible chat endpoint on this machine."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response

from opd.models.language import LanguageModel
from opd.teachers.hints import local_author


class Server:
    """A real chat endpoint on this machine that can be told to fail."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.authorization: list[str | None] = []
        self.failures: list[tuple[int, dict[str, str]]] = []
        self.answer: object = {"choices": [{"message": {"content": "turn 1: use d"}}]}
        self.answers: list[str] = []
        """Said one after the other before ``answer``."""
        self.delay = 0.0
        self.at_once = self.most_at_once = 0
        app = FastAPI()
        app.post("/v1/chat/completions")(self.complete)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uvicorn = uvicorn.Server(uvicorn.Config(app, port=self.port, log_level="error"))
        self.thread = threading.Thread(target=self.uvicorn.run, daemon=True)
        self.thread.start()
        while not self.uvicorn.started:
            time.sleep(0.01)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def complete(self, request: Request) -> Response:
        self.requests.append(await request.json())
        self.authorization.append(request.headers.get("authorization"))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(self.delay)
        self.at_once -= 1
        if self.failures:
            status, headers = self.failures.pop(0)
            return Response("no, and here is why", status, headers)
        said = {"choices": [{"message": {"content": self.answers.pop(0)}}]} if self.answers else self.answer
        return Response(json.dumps(said), media_type="application/json")

    def stop(self) -> None:
        self.uvicorn.should_exit = True
        self.thread.join()


class CriticServer(Server):
    """The same endpoint with a real model behind it, which answers as it does as a local author."""

    def __init__(self, model: LanguageModel) -> None:
        self.turn = threading.Lock()
        self.author = local_author(model, max_new_tokens=256)
        super().__init__()

    async def complete(self, request: Request) -> Response:
        messages = tuple((await request.json())["messages"])
        said = {"choices": [{"message": {"content": await asyncio.to_thread(self._answer, messages)}}]}
        return Response(json.dumps(said), media_type="application/json")

    def _answer(self, messages: Any) -> str:
        with self.turn:
            return self.author.answers([messages])[0] or ""
