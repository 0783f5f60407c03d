"""A real server of vLLM, where OPD_VLLM_PYTHON names the interpreter of an environment with it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

PYTHON = os.environ.get("OPD_VLLM_PYTHON")

STARTED = {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_SERVER_DEV_MODE": "1",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}

POOLING = [
    *("--runner", "pooling", "--convert", "embed"),
    *("--pooler-config", json.dumps({"task": "token_embed", "use_activation": False})),
]

ROLLING = ["--served-model-name", "student", "--enable-scale-out", "--logprobs-mode", "processed_logprobs"]


@contextmanager
def running(model: str, log: Path, *options: str) -> Iterator[str]:
    """A server on this machine, until the block ends."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [str(PYTHON), "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--host", "127.0.0.1"]
    command += ["--port", str(port), "--dtype", "float32", "--max-model-len", "512", "--enforce-eager", *options]
    with log.open("w") as output:
        process = subprocess.Popen(command, env={**os.environ, **STARTED}, stdout=output, stderr=subprocess.STDOUT)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            assert process.poll() is None, log.read_text()[-2000:]
            try:
                if httpx.get(f"{url}/health", timeout=1).is_success:
                    break
            except httpx.HTTPError:
                time.sleep(1)
        yield url
    finally:
        process.terminate()
        process.wait(30)
