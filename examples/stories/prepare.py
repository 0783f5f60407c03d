"""Make a student and prompts from a real pretrained model and real stories.

    python examples/stories/prepare.py TEACHER STORIES OUT

TEACHER is a folder with a Llama-architecture model, STORIES a folder with train.jsonl and test.jsonl
(``{"text": ...}`` a line). OUT gets ``student`` (the teacher's first two layers with its embeddings, norm and
head) and ``prompts.jsonl``, ``held_out.jsonl`` (the first words of the stories).
"""

import json
import sys
from pathlib import Path

from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

LAYERS = 2
WORDS = 4


def main(teacher: Path, stories: Path, out: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(teacher)
    model.model.layers = nn.ModuleList(model.model.layers[:LAYERS])
    model.config.num_hidden_layers = LAYERS
    model.save_pretrained(out / "student")
    AutoTokenizer.from_pretrained(teacher).save_pretrained(out / "student")
    for split, name in (("train", "prompts"), ("test", "held_out")):
        lines = (stories / f"{split}.jsonl").read_text().splitlines()
        starts = [" ".join(json.loads(line)["text"].split()[:WORDS]) for line in lines]
        (out / f"{name}.jsonl").write_text("".join(json.dumps({"prompt": s}) + "\n" for s in starts))
    print(f"student and prompts are in {out}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
