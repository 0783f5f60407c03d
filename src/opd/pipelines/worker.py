"""The process of one stage: ``python -m opd.pipelines.worker``, with the job on stdin and its error on stdout.

stdin stays open while the parent runs. When the parent ends, for any reason, this process ends too.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from opd.config.secrets import redact_sentence
from opd.errors import OpdError
from opd.models.folders import model_files
from opd.output.run_folder import locked, write_json
from opd.pipelines import state

LONGEST = 10_000
"""Largest number of characters of an error, so that it fits in the pipe's buffer."""


def main() -> None:
    """Run one job and print its error, if any. Exit status 1: the log has a traceback."""
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="replace")
    os.dup2(2, 1)  # output of libraries goes to the log
    job = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    status = 0
    try:
        _do(job)
    except OpdError as error:
        answer.write(redact_sentence(str(error))[:LONGEST])
    except KeyboardInterrupt as error:  # the parent has asked for the end, and reports it
        print(error, file=sys.stderr)
        status = 1
    except Exception as error:
        sys.stderr.write(redact_sentence(traceback.format_exc()))
        answer.write(redact_sentence(f"{type(error).__name__}: {error}")[:LONGEST])
        status = 1
    answer.close()
    sys.exit(status)


def _end_with_the_parent() -> None:
    """Exit at the end of stdin. ``os.read`` avoids Python's buffer, whose lock can block interpreter shutdown."""
    while os.read(0, 1):
        pass
    os._exit(1)


def _do(job: Mapping[str, Any]) -> None:
    """Run the stage and write its stage.json."""
    folder, started = Path(job["folder"]), job["started"]
    result = _KINDS[started["kind"]](folder, job["settings"], started)
    files = [folder / "result.json"] if started["kind"] == "eval" else model_files(folder)
    state.finish(folder, started, result, files)


def _train(folder: Path, settings: Mapping[str, Any], started: Mapping[str, Any]) -> dict[str, Any]:
    from opd.api import train

    result = asdict(train({**settings, "out": str(folder)}, resume=True))
    return {key: value for key, value in result.items() if key != "out"}


def _average(folder: Path, settings: Mapping[str, Any], started: Mapping[str, Any]) -> dict[str, Any]:
    from opd.pipelines.average import average

    begun = time.perf_counter()
    with locked(folder):
        models = dict(zip(started["settings"]["average"], settings["average"], strict=True))
        average(models, settings["weights"], folder, key=f"stages.{started['stage']}.average")
    return {"seconds": time.perf_counter() - begun}


def _evaluate(folder: Path, settings: Mapping[str, Any], started: Mapping[str, Any]) -> dict[str, Any]:
    from opd.api import evaluate
    from opd.output.run_log import RunLog

    begun, metrics = time.perf_counter(), {}
    wanted = {key: settings[key] for key in ("prompts", "samples", "max_new_tokens", "max_turns", "device")}
    with locked(folder):
        log = RunLog(folder / "metrics.jsonl", [], [])
        log.rewind(-1)
        for step, (name, model) in enumerate(zip(started["settings"]["eval"], settings["eval"], strict=True), 1):
            metrics[name] = evaluate(model, **wanted)
            log.evaluation(step, metrics[name])
        write_json(folder / "result.json", {"metrics": metrics})
    return {"seconds": time.perf_counter() - begun, "metrics": metrics}


_KINDS = {"train": _train, "average": _average, "eval": _evaluate}

if __name__ == "__main__":
    main()
