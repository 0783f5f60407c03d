"""The run file: every key, its default and its meaning. Nothing here imports torch; ``opd.config.read`` reads it."""

from opd.config.diffusion import DiffusionConfig
from opd.config.run import MAY_CHANGE, BaseRun, EvalConfig, PromptsConfig, RunConfig
from opd.config.teacher import GateConfig, TeacherConfig, TeacherModelConfig

__all__ = [
    "MAY_CHANGE",
    "BaseRun",
    "DiffusionConfig",
    "EvalConfig",
    "GateConfig",
    "PromptsConfig",
    "RunConfig",
    "TeacherConfig",
    "TeacherModelConfig",
]
