"""Denoising models: a diffusers pipeline, its denoiser, and the encoding of prompts.

Suffixes: T states (a noisy latent at one step), B images, X the dimensions of a latent: C channels, H and W.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.loaders import PeftAdapterMixin
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from opd.diffusion.conditioning import ENCODERS, NOTHING, UNGUIDED, Conditioning, key_of
from opd.diffusion.folders import load_pipeline, quiet, save_pipeline
from opd.errors import ConfigError, ModelError
from opd.models.bundled import resolve
from opd.models.language import freeze
from opd.models.loading import unloadable
from opd.models.sealed import check_sealed
from opd.models.weights import shared_copy
from opd.types import Prompt

ADAPTER = "pytorch_lora_weights.safetensors"
"""File name by which a folder is recognised as a LoRA."""


@dataclass(frozen=True)
class DenoisingModel:
    """A denoiser and its pipeline.

    Attributes:
        pipeline: scheduler, text encoders and autoencoder; never trained.
        model: the denoiser, the pipeline's own or a copy of it.
        source: path or id, for messages and the model card.
        text_tokens: tokens of the pipeline's long text encoder.
        autocast: dtype of matrix products in the denoiser's forward passes; None for that of the weights.
        encoded: conditioning by prompt, without images; the text encoders do not change.
    """

    pipeline: Any
    model: Any
    source: str
    text_tokens: int = 256
    autocast: torch.dtype | None = None
    encoded: dict[Any, Conditioning] = field(default_factory=dict, repr=False, compare=False)

    @property
    def device(self) -> torch.device:
        device: torch.device = next(self.model.parameters()).device
        return device

    @property
    def shape(self) -> tuple[int, int, int]:
        """[C, H, W] of a latent."""
        size = self.model.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return int(self.model.config.in_channels), int(height), int(width)

    def predict(
        self, latents_TX: Tensor, time_T: Tensor, conditioning: Sequence[Conditioning], guidance: float = 1.0
    ) -> Tensor:
        """The denoiser's prediction, float32 [T, C, H, W], with gradients unless the caller turned them off.

        Args:
            latents_TX: [T, C, H, W], noisy.
            time_T: float32 [T], times of the scheduler.
            conditioning: one per state.
            guidance: s of unconditional + s · (conditional − unconditional); 1 computes the conditional alone.
        """
        prediction_TX = self._forward(latents_TX, time_T, conditioning)
        if guidance == 1:
            return prediction_TX
        without_TX = self._forward(latents_TX, time_T, self.encode([NOTHING]) * len(conditioning))
        return without_TX + guidance * (prediction_TX - without_TX)

    def _forward(self, latents_TX: Tensor, time_T: Tensor, conditioning: Sequence[Conditioning]) -> Tensor:
        """One forward pass for all rows whose conditioning has the same shapes."""
        parts, places = [], []
        for rows in alike(conditioning):
            stacked = {
                name: torch.stack([conditioning[r][name] for r in rows]).to(self.device)
                for name in conditioning[rows[0]]
            }
            there = torch.tensor(rows, device=latents_TX.device)
            with torch.autocast(self.device.type, self.autocast) if self.autocast else nullcontext():
                out = self.model(latents_TX[there], timestep=time_T[there], **stacked, return_dict=False)[0]
            parts.append(out.float()[:, : latents_TX.shape[1]])  # some also predict their variance, in further channels
            places.append(there)
        return torch.cat(parts)[torch.cat(places).argsort()]

    @torch.no_grad()
    def encode(self, prompts: Sequence[Prompt], images: Sequence[Tensor | None] = ()) -> list[Conditioning]:
        """The conditioning of each prompt, with an image if one is given.

        Args:
            images: [3, H, W] in [−1, 1] each, or None.

        Raises:
            DataError: a prompt lacks the label that this kind of pipeline needs.
        """
        for prompt in prompts:
            if key_of(prompt) not in self.encoded:
                encoder = ENCODERS[type(self.pipeline).__name__]
                self.encoded[key_of(prompt)] = encoder(self.pipeline, prompt, self.text_tokens)
        conditioning = [self.encoded[key_of(prompt)] for prompt in prompts]
        for row, image in enumerate(images):
            if image is not None:
                conditioning[row] = self._with_image(conditioning[row], image)
        return conditioning

    def _with_image(self, conditioning: Conditioning, image: Tensor) -> Conditioning:
        encoder = self.pipeline.image_encoder
        size = encoder.config.image_size
        shown = nn.functional.interpolate(image[None].to(self.device), (size, size), mode="area")
        tokens_LD = encoder(shown.to(encoder.dtype)).last_hidden_state[0]
        text_LD = conditioning["encoder_hidden_states"]
        return {**conditioning, "encoder_hidden_states": torch.cat([text_LD, tokens_LD.to(text_LD)])}

    def check_takes_images(self, key: str) -> None:
        """Refuse a pipeline that cannot be conditioned on an image.

        Raises:
            ModelError: it has no image encoder as wide as the denoiser's context.
        """
        encoder = getattr(self.pipeline, "image_encoder", None)
        wide = getattr(self.model.config, "joint_attention_dim", None)
        if encoder is None or wide is None or encoder.config.hidden_size != wide:
            raise ModelError(
                f"{key}: '{self.source}' has no image_encoder as wide as the denoiser's context ({wide}). Fix: take a "
                "pipeline with one, or set teacher.view=plain"
            )

    def check_guidance(self, guidance: float, key: str) -> None:
        """Refuse guidance of a model without an unconditional prediction.

        Raises:
            ModelError: it has none.
        """
        if guidance != 1 and type(self.pipeline).__name__ in UNGUIDED:
            raise ModelError(
                f"{key}={guidance:g}: '{self.source}' has no unconditional prediction, which guidance needs. Fix: set "
                "it to 1"
            )

    def decode(self, latents_BX: Tensor) -> Tensor:
        """Images [B, 3, H, W] of latents, roughly in [−1, 1]; gradients flow unless the caller turned them off."""
        vae = self._vae
        if vae is None:
            return latents_BX
        shift = getattr(vae.config, "shift_factor", None) or 0.0
        decoded: Tensor = vae.decode(latents_BX / vae.config.scaling_factor + shift, return_dict=False)[0]
        return decoded

    @torch.no_grad()
    def latents_of(self, images_BX: Tensor) -> Tensor:
        """Latents [B, C, H, W] of images [B, 3, H, W] in [−1, 1], resized to the denoiser's size."""
        vae, (_, height, width) = self._vae, self.shape
        factor = 1 if vae is None else 2 ** (len(vae.config.block_out_channels) - 1)
        size = (height * factor, width * factor)
        if images_BX.shape[-2:] != size:
            images_BX = nn.functional.interpolate(images_BX, size, mode="area")
        if vae is None:
            return images_BX.to(self.device)
        mean: Tensor = vae.encode(images_BX.to(self.device)).latent_dist.mode()
        shift = getattr(vae.config, "shift_factor", None) or 0.0
        return (mean - shift) * float(vae.config.scaling_factor)

    @property
    def _vae(self) -> Any:
        """The autoencoder; None if the denoiser works on pixels."""
        return getattr(self.pipeline, "vae", None)

    def save(self, folder: Path) -> None:
        """Save an ordinary pipeline folder; a LoRA is merged in, and saved beside it in ``lora``."""
        part, whole = part_of(self.pipeline), self.model.eval()
        if adapted(self.model):
            whole = copy.deepcopy(self.model)
            with quiet():
                self.model.save_lora_adapter(folder / "lora")
                whole.fuse_lora()
                whole.unload_lora()
        mine = getattr(self.pipeline, part)
        setattr(self.pipeline, part, whole)
        save_pipeline(self.pipeline, folder)
        setattr(self.pipeline, part, mine)

    def train(self) -> None:
        """Prepare for forward passes with gradients."""
        self.model.train()

    def save_weights(self, folder: Path) -> None:
        """Write the denoiser alone as diffusers does, or its adapter: for a checkpoint, as nothing else trains."""
        with quiet():
            if adapted(self.model):
                self.model.save_lora_adapter(folder)
            else:
                self.model.save_pretrained(folder)


def alike(conditioning: Sequence[Conditioning]) -> Iterator[list[int]]:
    """Groups of rows whose conditioning has the same shapes."""
    groups: dict[Any, list[int]] = {}
    for row, one in enumerate(conditioning):
        groups.setdefault(tuple((name, tensor.shape) for name, tensor in sorted(one.items())), []).append(row)
    yield from groups.values()


def load(name: str, *, key: str, text_tokens: int = 256, device: str = "cpu") -> DenoisingModel:
    """Load a diffusers pipeline from a folder, a bundled name or a hub id; weights in float32.

    Raises:
        ModelError: it cannot be loaded, or its class is not supported.
    """
    try:
        with quiet():
            pipeline = load_pipeline(name).to(device)
    except (OSError, ValueError, KeyError, ImportError, AttributeError, TypeError) as error:
        raise unloadable(key, name, error, needs="model_index.json and the pipeline's parts") from error
    return of_pipeline(pipeline, source=name, key=key, text_tokens=text_tokens)


def of_pipeline(pipeline: Any, *, source: str, key: str, text_tokens: int = 256) -> DenoisingModel:
    """A pipeline as a denoising model, with all components frozen.

    Raises:
        ModelError: it is no pipeline, or its class is not supported.
    """
    kind = type(pipeline).__name__
    if not isinstance(pipeline, DiffusionPipeline) or kind not in ENCODERS:
        raise ModelError(f"{key}: '{source}' is a {kind}. Fix: take one of {', '.join(ENCODERS)}")
    pipeline.set_progress_bar_config(disable=True)
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            freeze(part)
    return DenoisingModel(pipeline, getattr(pipeline, part_of(pipeline)), source, text_tokens)


def part_of(pipeline: Any) -> str:
    """The pipeline's name for its denoiser."""
    return "transformer" if "transformer" in pipeline.components else "unet"


def adapted(model: Any) -> bool:
    """Whether a denoiser has a LoRA."""
    return bool(getattr(model, "peft_config", None))


def is_adapter(name: str) -> bool:
    """Whether a name is the folder of a LoRA."""
    return (Path(resolve(name)) / ADAPTER).is_file()


def with_adapter(base: DenoisingModel, name: str, *, key: str) -> DenoisingModel:
    """A copy of a model with a LoRA; weights that do not train are shared with the base.

    Raises:
        ModelError: the adapter does not fit.
    """
    from peft.utils import get_peft_model_state_dict

    check_adaptable(base, key=key)
    check_sealed(resolve(name), key=key)
    model, file = shared_copy(base.model), Path(resolve(name)) / ADAPTER
    part = part_of(base.pipeline)
    try:
        with safe_open(file, "pt") as opened:
            names = list(opened.keys())
        prefixed = all(tensor.startswith(f"{part}.") for tensor in names)
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # the sentence below says the same
            model.load_lora_adapter(str(file.parent), weight_name=ADAPTER, prefix=part if prefixed else None)
        fit = len(get_peft_model_state_dict(model, adapter_name=next(iter(model.peft_config)))) if adapted(model) else 0
        if fit != len(names):  # diffusers skips tensors without a matching layer
            raise ValueError(f"{len(names) - fit} of its {len(names)} tensors have no place in this denoiser")
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise unloadable(key, name, error, needs="the LoRA of a denoiser like the student's") from error
    return replace(base, model=freeze(model), source=name)


def add_adapter(model: DenoisingModel, *, rank: int, alpha: int, targets: Sequence[str]) -> None:
    """Add a LoRA to a model; only its weights train.

    Raises:
        ConfigError: no layer's name has such an ending.
        ModelError: diffusers has no adapters for this denoiser.
    """
    from peft import LoraConfig

    check_adaptable(model, key="lora")
    settings = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets))
    try:
        with quiet():
            model.model.add_adapter(settings)
    except ValueError as error:
        raise ConfigError(
            f"lora.targets: {str(error).splitlines()[0].rstrip('.')}. Fix: name layers of '{model.source}'"
        ) from error


def check_adaptable(model: DenoisingModel, *, key: str) -> None:
    """Refuse a LoRA for a denoiser without adapters in diffusers.

    Raises:
        ModelError: it has none.
    """
    if not isinstance(model.model, PeftAdapterMixin):
        raise ModelError(
            f"{key}: the denoiser of '{model.source}' is a {type(model.model).__name__}, for which diffusers has no "
            "adapters. Fix: leave lora out to train all weights, and take teachers that are whole pipelines"
        )


def frozen_copy(model: DenoisingModel) -> DenoisingModel:
    """A frozen copy of the model as it is now; weights that do not train are shared with it."""
    return replace(model, model=freeze(shared_copy(model.model)))
