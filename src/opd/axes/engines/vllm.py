"""Generation by servers of vLLM."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from opd.axes.context import RunContext
from opd.axes.engines.base import EngineConfig
from opd.config.secrets import KeyVariable, ServerUrl
from opd.config.served import ROLLOUT_KEY
from opd.errors import ConfigError

if TYPE_CHECKING:
    from opd.models.language import LanguageModel
    from opd.types import Engine


class Vllm(EngineConfig):
    """Servers of vLLM with the student's weights, which are sent to them whenever they have changed.

    ``{vllm: URL}`` and ``{vllm: [URL, …]}`` stand for ``{type: vllm, url: …}``.
    """

    type: Literal["vllm"] = "vllm"
    url: tuple[ServerUrl, ...] = Field(min_length=1)
    """Addresses of servers, such as http://HOST:8000; rollouts are divided among them."""
    name: str | None = None
    """The served model's name; by default the first one that the server lists."""
    push: str = "folder"
    """How weights are sent: as a model folder that servers read. An adapter is sent as an adapter's folder."""
    folder: str | None = None
    """A folder that runs and servers share, in which each run has one of its own; by default one in ``out``."""
    tolerance: float = Field(0.1, gt=0)
    """Mean difference in nats between log-probabilities of server and run after weights were sent, above which the
    server is not used. Servers in bfloat16 differ by some hundredths."""
    concurrency: int = Field(256, ge=1)
    """Rollouts at a time."""
    timeout: float = Field(600.0, gt=0)
    """Seconds for a whole rollout, and for sending weights."""
    wait: float = Field(600.0, ge=0)
    """Seconds to go on asking a server that does not answer or answers wrongly, before the run ends."""
    api_key_env: KeyVariable = ROLLOUT_KEY
    """Environment variable with the servers' key, which is never written anywhere."""

    shorthand = "url"
    elsewhere = True

    @field_validator("url", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("push")
    @classmethod
    def _can_be_pushed(cls, value: str) -> str:
        if value != "folder":
            raise ValueError(
                f"weights are sent as a folder alone{', as nccl needs GPUs and was never run' * (value == 'nccl')}. "
                "Fix: set folder"
            )
        return value

    def build(self, run: RunContext, model: LanguageModel) -> Engine:
        """The servers for the student; transformers for other models."""
        from opd.distributed.ranks import current
        from opd.engines.hf import HFEngine
        from opd.servers.rollouts import VllmEngine

        if current().size > 1:
            raise ConfigError(
                f"rollout.engine=vllm: one process sends weights, and this run has {current().size}. Fix: start it "
                "without torchrun, or set rollout.engine=hf"
            )
        if model is not run.student:
            return HFEngine(model)
        settings = self.model_dump(exclude={"type", "push", "folder"})
        out = Path(run.config.out).resolve()
        folder = Path(self.folder) / "-".join(out.parts[1:]) if self.folder else out / "pushed"
        return VllmEngine(model, folder=folder, **settings)
