"""The axis values of a denoising run: settings, needs, builder, and words for the map.

Nothing here imports torch at load; ``build`` imports what it needs. To add a value, copy the nearest class and name it
in its axis at the end of the file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, SerializeAsAny

from opd.axes.base import AxisValue, axis

if TYPE_CHECKING:
    from opd.axes.context import DenoisingRunContext
    from opd.diffusion.models import DenoisingModel
    from opd.types import RolloutSource, Term, View


# ------------------------------------------------------------------------------------------------------- rollout.source


class DenoisingSource(AxisValue):
    """A rollout source; ``build`` makes the object with ``rollout(prompts, seed, step)``."""

    axis = "rollout.source (family: diffusion)"

    @property
    def uses_teacher(self) -> bool:
        """Whether a teacher generates the trajectories or images."""
        return False

    def build(self, run: DenoisingRunContext) -> RolloutSource:
        """The source of the trajectories to train on."""
        raise NotImplementedError


class StudentSource(DenoisingSource):
    """The student's own trajectories: on-policy."""

    type: Literal["student"] = "student"

    def build(self, run: DenoisingRunContext) -> RolloutSource:
        """The student's sampler; a task, if there is one, rewards its images."""
        return run.source("student")


class TeacherSource(DenoisingSource):
    """The teacher's trajectories: off-policy."""

    type: Literal["teacher"] = "teacher"

    @property
    def uses_teacher(self) -> bool:
        """Always."""
        return True

    def needs(self) -> dict[str, tuple[str, ...]]:
        """A model that generates."""
        return {"": ("teacher model",)}

    def build(self, run: DenoisingRunContext) -> RolloutSource:
        """The teachers' samplers, by domain."""
        return run.source("teacher")


class ImageSource(DenoisingSource):
    """Clean images at random noise levels: supervised fine-tuning."""

    type: Literal["images"] = "images"
    of: Literal["prompts", "teacher"] = "prompts"
    """The prompts' own images, or images that the teacher generates."""

    @property
    def uses_teacher(self) -> bool:
        """Whether the teacher generates the images."""
        return self.of == "teacher"

    def needs(self) -> dict[str, tuple[str, ...]]:
        """The image as target; and a model, if a teacher generates."""
        return {"": ("image target",), **({"of": ("teacher model",)} if self.uses_teacher else {})}

    def words(self) -> str:
        """The source's cell in the map."""
        return "noised images"

    def build(self, run: DenoisingRunContext) -> RolloutSource:
        """Noised images; prompts without an image get the student's trajectory."""
        from opd.diffusion.sampler import GeneratedImages, PromptImages

        if self.uses_teacher:
            return run.noised(GeneratedImages(run.source("teacher")))
        return run.noised(PromptImages(run.student), others=run.source("student"))


# ------------------------------------------------------------------------------------------------------ teacher.weights


class DenoisingWeights(AxisValue):
    """The student's own weights as teacher."""

    axis = "teacher.weights (family: diffusion)"
    is_student: ClassVar[bool] = True
    """Whether the first step's teacher is the student itself, so that a plain view teaches nothing."""

    def words(self) -> str:
        """The weights' cell in the map."""
        return f"self, {self.type}"

    def build(self, run: DenoisingRunContext) -> tuple[DenoisingModel, Any]:
        """The model that predicts, and an ``EmaWeights`` to update after each step, or None."""
        raise NotImplementedError


class FrozenWeights(DenoisingWeights):
    """The student's initial weights."""

    type: Literal["frozen"] = "frozen"

    def build(self, run: DenoisingRunContext) -> tuple[DenoisingModel, Any]:
        """The copy that the anchor uses too."""
        return run.initial, None


class EmaTeacherWeights(DenoisingWeights):
    """A moving average of the student's weights, updated after each step."""

    type: Literal["ema"] = "ema"
    decay: float = Field(0.9999, gt=0, lt=1)
    """Share of the average that stays at each step."""

    is_student = False

    def words(self) -> str:
        """The weights' cell in the map."""
        return "self, EMA"

    def build(self, run: DenoisingRunContext) -> tuple[DenoisingModel, Any]:
        """A copy, and the average that updates it."""
        from opd.diffusion.models import frozen_copy
        from opd.models.copies import EmaWeights

        average = frozen_copy(run.student)
        return average, EmaWeights(average.model, run.student.model, self.decay)


class LiveWeights(DenoisingWeights):
    """The student's current weights."""

    type: Literal["live"] = "live"

    def build(self, run: DenoisingRunContext) -> tuple[DenoisingModel, Any]:
        """The student itself."""
        return run.student, None


# --------------------------------------------------------------------------------------------------------- teacher.view


class DenoisingView(AxisValue):
    """The teacher's conditioning; ``build`` makes the object with ``segments(rollouts)``."""

    axis = "teacher.view (family: diffusion)"

    def build(self) -> View:
        """The view."""
        raise NotImplementedError


class PlainImageView(DenoisingView):
    """The prompt alone."""

    type: Literal["plain"] = "plain"

    def build(self) -> View:
        """Every trajectory with its own prompt."""
        from opd.axes.views.plain import PlainView

        return PlainView()


class ReferenceImageView(DenoisingView):
    """The prompt and its image. Prompts without an image get no target from the teacher."""

    type: Literal["image"] = "image"

    def build(self) -> View:
        """The trajectories whose prompt has an image."""
        from opd.diffusion.teachers import ImageView

        return ImageView()


# ---------------------------------------------------------------------------------------------------------- loss.signal


class DenoisingSignal(AxisValue):
    """The main term of the loss."""

    axis = "loss.signal (family: diffusion)"
    reads_teacher: ClassVar[bool] = False
    """Whether a teacher predicts at the student's states."""

    def gradient(self) -> str:
        """The gradient's cell in the map."""
        return "direct"

    def build(self, run: DenoisingRunContext) -> Term:
        """The term."""
        raise NotImplementedError


class TeacherPrediction(DenoisingSignal):
    """The teacher's prediction at the student's states."""

    type: Literal["prediction"] = "prediction"

    reads_teacher = True

    def needs(self) -> dict[str, tuple[str, ...]]:
        """A teacher to learn from."""
        return {"": ("another teacher",)}

    def words(self) -> str:
        """The signal's cell in the map."""
        return "velocity"

    def build(self, run: DenoisingRunContext) -> Term:
        """The distance to one teacher, or to several by domain."""
        from opd.types import Term

        return Term("distill", "distill", run.teacher(), run.view(), run.distance, run.weight, run.step_weights)


class ImageSignal(DenoisingSignal):
    """The clean image behind a noised one: supervised fine-tuning."""

    type: Literal["image"] = "image"

    def needs(self) -> dict[str, tuple[str, ...]]:
        """Noised images, and a divergence that is defined for them."""
        return {"": ("noised images", "divergence of predictions")}

    def words(self) -> str:
        """The signal's cell in the map."""
        return "the image's velocity"

    def build(self, run: DenoisingRunContext) -> Term:
        """The distance to the prediction that leads back to the image."""
        from opd.diffusion.teachers import ImageTarget, NoisedImageView
        from opd.types import Term

        return Term("distill", "distill", ImageTarget(run.schedule), NoisedImageView(), run.distance, run.weight)


class RewardOnly(DenoisingSignal):
    """Rewards alone, without a teacher (Flow-GRPO, arXiv 2505.05470)."""

    type: Literal["reward"] = "reward"

    def needs(self) -> dict[str, tuple[str, ...]]:
        """A policy gradient of group-relative advantages."""
        return {"": POLICY_GRADIENT}

    def gradient(self) -> str:
        """The gradient's cell in the map."""
        return "policy gradient"

    def build(self, run: DenoisingRunContext) -> Term:
        """The policy gradient of the reward."""
        return run.reward_term(run.weight)


POLICY_GRADIENT = ("density", "several trajectories", "student's trajectories")
"""The needs of a policy gradient."""

SourceChoice = Annotated[
    SerializeAsAny[DenoisingSource], axis(DenoisingSource, StudentSource, TeacherSource, ImageSource)
]
WeightsChoice = Annotated[
    SerializeAsAny[DenoisingWeights], axis(DenoisingWeights, FrozenWeights, EmaTeacherWeights, LiveWeights)
]
SeenByTeacher = Annotated[SerializeAsAny[DenoisingView], axis(DenoisingView, PlainImageView, ReferenceImageView)]
SignalChoice = Annotated[
    SerializeAsAny[DenoisingSignal], axis(DenoisingSignal, TeacherPrediction, ImageSignal, RewardOnly)
]
