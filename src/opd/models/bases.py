"""Whole models that several adapters share, and the bits that their weights are held in."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoModelForCausalLM

from opd.errors import ConfigError
from opd.models.weights import shared_copy

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

Bits = Literal["8bit", "4bit"]


def read_whole(path: str, **settings: Any) -> Any:
    """A model whose weights all come from its files.

    Raises:
        ValueError: tensors are missing or have another shape, so that transformers would make random ones.
    """
    model, found = AutoModelForCausalLM.from_pretrained(
        path, output_loading_info=True, ignore_mismatched_sizes=True, trust_remote_code=False, **settings
    )
    if missing := sorted(found["missing_keys"]):
        named = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        raise ValueError(f"its weights lack {len(missing)} of the model's tensors, which would be random: {named}")
    if shapes := sorted(found["mismatched_keys"]):
        name, given, wanted = shapes[0]
        raise ValueError(f"its tensor '{name}' has shape {list(given)}, and its config.json asks for {list(wanted)}")
    return model


class Bases:
    """Frozen whole models by path, each in memory once. All of one run's have one dtype and device.

    Args:
        quantize: hold their weights in 8 or 4 bits, through bitsandbytes.

    Raises:
        ConfigError: bitsandbytes is not installed.
    """

    def __init__(self, quantize: Bits | None = None) -> None:
        self.quantize = quantize
        self.held: dict[str, Any] = {}
        if quantize and importlib.util.find_spec("bitsandbytes") is None:
            raise ConfigError(
                f"teacher.quantize={quantize} needs bitsandbytes, which is not installed. Fix: pip install "
                "'opd[quantize]', or leave it out"
            )

    def model(self, path: str, *, dtype: str, device: str, shared: bool, **parts: Any) -> Any:
        """A model, in evaluation mode: modules around the tensors of one that is held, or loaded.

        Args:
            shared: whether others may use its weights; they are then frozen.
            parts: see ``in_parts``.
        """
        if (name := _name(path)) in self.held:
            return shared_copy(self.held[name])
        whole = read_whole(path, dtype=DTYPES[dtype], **self._bits(dtype, device), **parts)
        whole = (whole if self.quantize else whole.to(device)).eval()
        if self.quantize:
            self._check_computes(whole, path, device)
        if not shared:
            return whole
        self.hold(path, whole.requires_grad_(False))
        return shared_copy(whole)

    def hold(self, path: str, model: Any) -> None:
        """Let others use the weights of a frozen model."""
        self.held[_name(path)] = model

    @torch.no_grad()
    def _check_computes(self, model: Any, path: str, device: str) -> None:
        """Some layer sizes have no product in few bits, and nothing says so before the first one."""
        try:
            model(torch.ones(1, 8, dtype=torch.int64, device=device))
        except (AssertionError, RuntimeError, NotImplementedError) as error:
            raise ConfigError(
                f"teacher.quantize={self.quantize}: bitsandbytes cannot compute the layers of '{path}' on {device} "
                f"({str(error).splitlines()[0]}). Fix: set the other of 8bit and 4bit, or leave it out"
            ) from error

    def _bits(self, dtype: str, device: str) -> dict[str, Any]:
        """The arguments of ``from_pretrained`` for quantised weights. The output head stays as it is."""
        if self.quantize is None:
            return {}
        from transformers import BitsAndBytesConfig

        eight = self.quantize == "8bit"
        config = BitsAndBytesConfig(
            load_in_8bit=eight,
            load_in_4bit=not eight,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=DTYPES[dtype],
        )
        return {"quantization_config": config, "device_map": {"": device}}


def _name(path: str) -> str:
    """The same for two ways to write one folder; an id is its own."""
    return str(Path(path).resolve()) if Path(path).is_dir() else path
