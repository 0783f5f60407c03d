"""The run file: every key, its default and what it means. Nothing here imports torch; ``opd.run_file`` reads it."""

from opd.config.loss import (
    BridgeConfig,
    CrossConfig,
    HiddenConfig,
    LossConfig,
    PositionsConfig,
    SampledConfig,
    TopKConfig,
    UnsureConfig,
)
from opd.config.run import (
    CheckpointConfig,
    EvalConfig,
    GuardsConfig,
    MethodConfig,
    OptimizerConfig,
    PromptsConfig,
    RolloutConfig,
    RunConfig,
)
from opd.config.teacher import (
    AuthorConfig,
    ContextConfig,
    ExperienceConfig,
    FeedbackConfig,
    HintConfig,
    PrivilegedConfig,
    TeacherConfig,
    ViewConfig,
)

__all__ = [
    "AuthorConfig",
    "BridgeConfig",
    "CheckpointConfig",
    "ContextConfig",
    "CrossConfig",
    "EvalConfig",
    "ExperienceConfig",
    "FeedbackConfig",
    "GuardsConfig",
    "HiddenConfig",
    "HintConfig",
    "LossConfig",
    "MethodConfig",
    "OptimizerConfig",
    "PositionsConfig",
    "PrivilegedConfig",
    "PromptsConfig",
    "RolloutConfig",
    "RunConfig",
    "SampledConfig",
    "TeacherConfig",
    "TopKConfig",
    "UnsureConfig",
    "ViewConfig",
]
