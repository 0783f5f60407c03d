"""Diffusers pipelines of a few thousand weights, one of every kind that can be a student, and run files for them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from opd.diffusion.pixels import Pixels

WORDS = ["red", "green", "blue", "big", "small", "circle", "square", "cross"]
TOKENS = ["<pad>", "<unk>", "<end>", *WORDS]
SIZE = 8
"""Height and width of every latent."""
CLASSES = 4


def tokenizer() -> PreTrainedTokenizerFast:
    """Whole words, an end token and padding up to 6 tokens."""
    backend = Tokenizer(WordLevel({token: i for i, token in enumerate(TOKENS)}, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    backend.post_processor = TemplateProcessing(single="$A <end>", special_tokens=[("<end>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<end>",
        model_max_length=6,
        clean_up_tokenization_spaces=False,
    )


def text_config(width: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(TOKENS),
        hidden_size=width,
        intermediate_size=width,
        projection_dim=width,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=6,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=2,
    )


def autoencoder() -> AutoencoderKL:
    """Images of 16x16 as latents of 4x8x8."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        block_out_channels=(4, 8),
        norm_num_groups=2,
        latent_channels=4,
        sample_size=2 * SIZE,
    )


def alphas(prediction: str = "epsilon", **config: Any) -> DDIMScheduler:
    return DDIMScheduler(**{"clip_sample": False, "prediction_type": prediction, **config})


def sd3(*, size: int = SIZE, shift: float = 1.0, image_encoder: bool = True) -> StableDiffusion3Pipeline:
    transformer = SD3Transformer2DModel(
        sample_size=size,
        patch_size=2,
        in_channels=3,
        out_channels=3,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pooled_projection_dim=16,
        pos_embed_max_size=8,
    )
    vision = SiglipVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=SIZE,
        patch_size=4,
        vision_use_head=False,
    )
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=shift),
        vae=Pixels(),
        text_encoder=CLIPTextModelWithProjection(text_config(8)),
        tokenizer=tokenizer(),
        text_encoder_2=CLIPTextModelWithProjection(text_config(8)),
        tokenizer_2=tokenizer(),
        text_encoder_3=None,
        tokenizer_3=None,
        image_encoder=SiglipVisionModel(vision) if image_encoder else None,
    )


def unet(classes: int | None) -> UNet2DModel:
    return UNet2DModel(
        sample_size=SIZE,
        block_out_channels=(4, 8),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        norm_num_groups=2,
        num_class_embeds=classes,
    )


def ddim(*, prediction: str = "epsilon", classes: int | None = CLASSES, **config: Any) -> DDIMPipeline:
    return DDIMPipeline(unet(classes), alphas(prediction, **config))


def ddpm(**config: Any) -> DDPMPipeline:
    return DDPMPipeline(unet(None), DDPMScheduler(**{"clip_sample": False, **config}))


def dit() -> DiTPipeline:
    transformer = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=4,
        in_channels=4,
        out_channels=8,  # it predicts its own variance behind the noise, as the published ones do
        num_layers=1,
        sample_size=SIZE,
        num_embeds_ada_norm=1000,  # the pipeline takes class 1000 for none, whatever the model says
    )
    return DiTPipeline(transformer, autoencoder(), alphas())


def sd(scheduler: Any = None) -> StableDiffusionPipeline:
    model = UNet2DConditionModel(
        sample_size=SIZE,
        block_out_channels=(4, 8),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=2,
    )
    return StableDiffusionPipeline(
        vae=autoencoder(),
        text_encoder=CLIPTextModel(text_config(16)),
        tokenizer=tokenizer(),
        unet=model,
        scheduler=scheduler or alphas(steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


KINDS: dict[str, Callable[..., Any]] = {"sd3": sd3, "ddim": ddim, "ddpm": ddpm, "dit": dit, "sd": sd}


def make_pipeline(kind: str, seed: int = 0, **changes: Any) -> Any:
    """A pipeline whose weights depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = KINDS[kind](**changes)
    pipeline.set_progress_bar_config(disable=True)
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    return pipeline


def prompt_rows(count: int = 8) -> list[dict[str, Any]]:
    """Prompts that every kind of pipeline can read."""
    shapes = [f"{size} {colour} {shape}" for size in WORDS[3:5] for colour in WORDS[:3] for shape in WORDS[5:]]
    return [{"id": f"p{n}", "prompt": shapes[n], "label": n % CLASSES} for n in range(count)]


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def run_tree(out: Path, student: str, **changes: Any) -> dict[str, Any]:
    """A run file of two steps; a mapping in ``changes`` is merged into its section."""
    tree: dict[str, Any] = {
        "family": "diffusion",
        "student": student,
        "text_tokens": 0,
        "teacher": {},
        "rollout": {"prompts_per_step": 4, "steps": 3},
        "optimizer": {"lr": 1e-2, "steps": 2},
        "log": [],
        "report": False,
        "out": str(out),
    }
    for key, value in changes.items():
        merges = isinstance(value, dict) and isinstance(tree.get(key), dict)
        tree[key] = {**tree[key], **value} if merges else value
    if "prompts" not in tree:
        out.parent.mkdir(parents=True, exist_ok=True)
        tree["prompts"] = {"path": write_rows(out.parent / f"{out.name}.jsonl", prompt_rows())}
    return tree
