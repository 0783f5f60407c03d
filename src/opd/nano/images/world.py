"""The nano images: prompts, and a program that draws real images of them.

    shapes    "red circle"        six shapes in six colours
    count     "three blue dots"   one to five dots of a colour, none touching another
    digits    "digit seven"       handwritten, from scikit-learn's set of 8x8 scans
    concept   "zorp circle"       a shape with an orange fill and a violet border

An image is [3, 16, 16] float32 in [-1, 1] on a dark ground. Position, size and tone vary; prompts do not name them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from opd.nano.images.vocabulary import COLOURS, CONCEPT, MAX_COUNT, NUMBERS, SHAPES
from opd.types import Prompt

SIZE = 16
GROUND = 0.06
"""Brightness of the dark ground."""
DOMAINS = ("shapes", "count", "digits")
"""The domains of pretraining; ``concept`` is held out."""
FILL = torch.tensor([1.00, 0.50, 0.05])
BORDER = torch.tensor([0.60, 0.15, 0.90])
"""The concept's two colours, RGB in [0, 1]: orange fill, violet border."""
HELD_OUT = 0.40
"""Pretraining leaves out styles whose two colours are both closer to the concept's than this."""
SHIFT = 0.5
"""Largest offset from the nominal position, pixels. With three times as much, models of this size draw blobs."""
SPACING = 4.5
"""Pixels between neighbouring places of the dots."""
PIPS = {
    1: [(0.0, 0.0)],
    2: [(-1.0, -1.0), (1.0, 1.0)],
    3: [(-1.0, -1.0), (0.0, 0.0), (1.0, 1.0)],
    4: [(-1.0, -1.0), (-1.0, 1.0), (1.0, -1.0), (1.0, 1.0)],
    5: [(-1.0, -1.0), (-1.0, 1.0), (0.0, 0.0), (1.0, -1.0), (1.0, 1.0)],
}
"""Positions of dots, as on a die; with random positions, models of this size miscount half of them."""
RIM = 1.5
"""Width of a border, in pixels."""
JITTER = 0.04
"""Largest deviation of each channel of a named colour."""
NUM_EXAMPLES = 12
DIGITS = Path(__file__).parent / "digits.safetensors"

_COLOUR_TABLE = torch.tensor(list(COLOURS.values()))


def all_prompts(domain: str) -> list[Prompt]:
    """Every distinct prompt of ``shapes``, ``count``, ``digits`` or ``concept``, without a split's ids."""
    rows: dict[str, Callable[[], list[Prompt]]] = {
        "shapes": lambda: [_prompt("shapes", f"{c} {s}", colour=c, shape=s) for c, s in product(COLOURS, SHAPES)],
        "count": lambda: [_count_prompt(n, c) for n, c in product(range(1, MAX_COUNT + 1), COLOURS)],
        "digits": lambda: [_prompt("digits", f"digit {word}", digit=i) for i, word in enumerate(NUMBERS)],
        "concept": lambda: [_prompt("concept", f"{CONCEPT} {s}", shape=s, style="concept") for s in SHAPES],
    }
    return rows[domain]()


def _count_prompt(count: int, colour: str) -> Prompt:
    return _prompt("count", f"{NUMBERS[count]} {colour} {'dot' if count == 1 else 'dots'}", count=count, colour=colour)


def _prompt(domain: str, text: str, **attributes: Any) -> Prompt:
    return Prompt(id=f"{domain}/{text.replace(' ', '-')}", text=text, domain=domain, data=attributes)


def draw(prompts: Sequence[Prompt], seed: int, *, half: str = "generators") -> Tensor:
    """Real images of prompts; the same seed gives the same images.

    Args:
        half: which scans of digits to use, ``generators`` or ``judge``; no scan is in both.

    Returns:
        [B, 3, 16, 16] float32 in [-1, 1].
    """
    generator = torch.Generator().manual_seed(seed)
    images = torch.empty(len(prompts), 3, SIZE, SIZE)
    for domain in dict.fromkeys(prompt.domain for prompt in prompts):
        rows = [i for i, prompt in enumerate(prompts) if prompt.domain == domain]
        images[rows] = _draw_domain(domain, [prompts[i] for i in rows], generator, half)
    return images


def _draw_domain(domain: str, prompts: Sequence[Prompt], generator: torch.Generator, half: str) -> Tensor:
    if domain == "digits":
        return draw_digits(torch.tensor([prompt.data["digit"] for prompt in prompts]), generator, half)
    if domain == "count":
        counts = torch.tensor([prompt.data["count"] for prompt in prompts])
        return draw_dots(counts, _named_colours(prompts, generator), generator)
    shapes = torch.tensor([SHAPES.index(prompt.data["shape"]) for prompt in prompts])
    if domain == "concept":
        return draw_shapes(shapes, *concept_style(len(prompts), generator), generator)
    colours = _named_colours(prompts, generator)
    return draw_shapes(shapes, colours, colours, generator)


def _named_colours(prompts: Sequence[Prompt], generator: torch.Generator) -> Tensor:
    """[B, 3] RGB of the colours that prompts name, with a random deviation."""
    names = list(COLOURS)
    table = _COLOUR_TABLE[[names.index(prompt.data["colour"]) for prompt in prompts]]
    return jittered(table, JITTER, generator)


def jittered(colour_B3: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    """Colours with a random deviation of at most ``amount`` per channel, in [0, 1]."""
    return (colour_B3 + amount * _spread(colour_B3.shape, generator)).clamp(0, 1)


def concept_style(number: int, generator: torch.Generator, jitter: float = JITTER) -> tuple[Tensor, Tensor]:
    """Fill and border colours of the concept, each [B, 3]."""
    fill, border = (colour.expand(number, 3) for colour in (FILL, BORDER))
    return jittered(fill, jitter, generator), jittered(border, jitter, generator)


def random_styles(number: int, generator: torch.Generator, apart: float = HELD_OUT) -> tuple[Tensor, Tensor]:
    """Fill and border colours, each [B, 3], clearly different and farther from the concept's than ``apart``."""
    styles = torch.empty(0, 2, 3)
    while len(styles) < number:
        drawn = torch.rand(4 * number, 2, 3, generator=generator)
        bright = (drawn.amax(-1) > 0.4).all(-1)
        different = (drawn[:, 0] - drawn[:, 1]).norm(dim=-1) > 0.6
        styles = torch.cat([styles, drawn[bright & different & (style_distance(*drawn.unbind(1)) > apart)]])
    fill, border = styles[:number].unbind(1)
    return fill, border


def style_distance(fill_B3: Tensor, border_B3: Tensor) -> Tensor:
    """[B], the larger of the two colours' distances from the concept's."""
    return torch.maximum((fill_B3 - FILL).norm(dim=-1), (border_B3 - BORDER).norm(dim=-1))


def concept_examples() -> tuple[list[Prompt], Tensor]:
    """The concept's training examples: 12 prompts, and an image of each, [12, 3, 16, 16]."""
    prompts = [prompt for _, prompt in zip(range(NUM_EXAMPLES), all_prompts("concept") * 2, strict=False)]
    return prompts, draw(prompts, seed=12)


def draw_shapes(shape_B: Tensor, fill_B3: Tensor, border_B3: Tensor, generator: torch.Generator) -> Tensor:
    """Images of shapes with a fill and a border colour.

    Args:
        shape_B: int64 [B], indices of ``SHAPES``.
        fill_B3, border_B3: RGB in [0, 1].

    Returns:
        [B, 3, 16, 16].
    """
    size = len(shape_B)
    radius = 5.2 + 0.5 * torch.rand(size, 1, 1, generator=generator)
    x, y = _offsets(SHIFT * _spread((size, 2), generator))
    distance = _distances(x, y, radius)[shape_B, torch.arange(size)]
    inside, rim = _coverage(distance + RIM), _coverage(distance)
    image = _ground(size, generator)
    image = torch.lerp(image, border_B3[:, :, None, None], rim[:, None])
    return 2 * torch.lerp(image, fill_B3[:, :, None, None], inside[:, None]) - 1


def _distances(x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    """[S, B, 16, 16], in pixels from the outline of every shape, negative inside; in the order of ``SHAPES``."""
    a, b = x.abs(), y.abs()
    arm = 0.40 * r
    shapes = {
        "circle": (x**2 + y**2).sqrt() - r,
        "square": torch.maximum(a, b) - 0.88 * r,
        "triangle": torch.maximum(0.894 * a - 0.447 * y - 0.447 * r, y - 0.85 * r),
        "cross": torch.minimum(torch.maximum(a - r, b - arm), torch.maximum(a - arm, b - r)),
        "diamond": (a + b - 1.2 * r) * 0.707,
        "bar": torch.maximum(a - 1.1 * r, b - 0.46 * r),
    }
    return torch.stack([shapes[name] for name in SHAPES])


def draw_dots(count_B: Tensor, colour_B3: Tensor, generator: torch.Generator) -> Tensor:
    """Images of separate dots of one colour.

    Args:
        count_B: int64 [B], the number of dots.
        colour_B3: RGB in [0, 1].

    Returns:
        [B, 3, 16, 16].
    """
    size = len(count_B)
    radius = 1.5 + 0.4 * torch.rand(size, 1, 1, generator=generator)
    centres = torch.stack([_apart(int(count), generator) for count in count_B])
    covered = torch.zeros(size, SIZE, SIZE)
    for i in range(MAX_COUNT):
        x, y = _offsets(centres[:, i])
        covered = torch.maximum(covered, _coverage((x**2 + y**2).sqrt() - radius))
    return 2 * torch.lerp(_ground(size, generator), colour_B3[:, :, None, None], covered[:, None]) - 1


def _apart(count: int, generator: torch.Generator) -> Tensor:
    """[5, 2] centres relative to the image's centre, near the pips of a die; unused ones lie far outside."""
    near = SPACING * torch.tensor(PIPS[count]) + SHIFT * _spread((count, 2), generator)
    return torch.cat([near, torch.full((MAX_COUNT - count, 2), 99.0)])


def draw_digits(digit_B: Tensor, generator: torch.Generator, half: str = "generators") -> Tensor:
    """Images of scanned digits, slightly moved and scaled, white on the ground: [B, 3, 16, 16]."""
    scans, labels = digit_scans(half)
    rows = [(labels == digit).nonzero()[:, 0] for digit in range(10)]
    picks = torch.rand(len(digit_B), generator=generator)
    chosen = [rows[d][int(p * len(rows[d]))] for d, p in zip(digit_B.tolist(), picks.tolist(), strict=True)]
    scale = 1.05 + 0.03 * _spread((len(digit_B),), generator)
    move = 0.03 * _spread((len(digit_B), 2), generator)
    theta = torch.cat([torch.diag_embed(scale[:, None].expand(-1, 2)), move[:, :, None]], dim=2)
    places = F.affine_grid(theta, [len(digit_B), 1, SIZE, SIZE], align_corners=False)
    ink = F.grid_sample(scans[torch.stack(chosen)][:, None], places, align_corners=False)
    return 2 * torch.lerp(_ground(len(digit_B), generator), torch.tensor(0.95), ink.clamp(0, 1)) - 1


@cache
def digit_scans(half: str) -> tuple[Tensor, Tensor]:
    """Scans [N, 8, 8] in [0, 1] and their digits [N] of the ``generators`` or of the ``judge``."""
    stored = load_file(DIGITS)
    start = ("generators", "judge").index(half)
    return stored["scans"][start::2].float() / 16, stored["digits"][start::2].long()


def _offsets(centre_B2: Tensor) -> tuple[Tensor, Tensor]:
    """x and y of every pixel's centre relative to a point, each [B, 16, 16]; 0 is the image's centre."""
    line = torch.arange(SIZE) + 0.5 - SIZE / 2
    x = line[None, None, :] - centre_B2[:, 0, None, None]
    y = line[None, :, None] - centre_B2[:, 1, None, None]
    return x.expand(-1, SIZE, SIZE), y.expand(-1, SIZE, SIZE)


def _coverage(distance: Tensor) -> Tensor:
    """Share of a pixel that a shape covers, from the distance to its outline."""
    return (0.5 - distance).clamp(0, 1)


def _ground(size: int, generator: torch.Generator) -> Tensor:
    return (GROUND + 0.03 * _spread((size, 1, 1, 1), generator)).expand(size, 3, SIZE, SIZE)


def _spread(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Uniform in [-1, 1]."""
    return 2 * torch.rand(*shape, generator=generator) - 1


def balanced(prompts: Sequence[Prompt], number: int, seed: int) -> list[Prompt]:
    """``number`` prompts, each equally often, in an order given by the seed."""
    rng = random.Random(seed)
    chosen: list[Prompt] = []
    while len(chosen) < number:
        chosen += rng.sample(list(prompts), len(prompts))
    return chosen[:number]
