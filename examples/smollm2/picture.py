"""Draw what a hint changed in one held-out prompt: python examples/smollm2/picture.py RUN FILE.svg."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path
from textwrap import wrap

from show import Story, stories

WIDTH, LEFT, LINE = 860, 24, 22
COLUMNS = 92
"""Characters of a line."""

STYLE = """
text { font: 14px ui-monospace, Menlo, Consolas, monospace; fill: #1f2328 }
.page { fill: #ffffff }
.label { font: 600 13px system-ui, sans-serif; fill: #59636e }
.card { fill: #f6f8fa; stroke: #d1d9e0 } .wrong { fill: #ffebe9; stroke: #ff8182 }
.hint { fill: #fff8c5; stroke: #d4a72c } .right { fill: #dafbe1; stroke: #4ac26b }
.rail { fill: #eaeef2 } .bar { fill: #0969da }
@media (prefers-color-scheme: dark) {
  .page { fill: #0d1117 } text { fill: #e6edf3 } .label { fill: #9198a1 } .card { fill: #151b23; stroke: #3d444d }
  .wrong { fill: #3c1618; stroke: #b62324 } .hint { fill: #362b0b; stroke: #9e6a03 }
  .right { fill: #12261e; stroke: #238636 } .rail { fill: #21262d } .bar { fill: #4493f8 }
}
"""


def card(kind: str, label: str, text: str, top: int) -> tuple[str, int]:
    """A box with a text, and where the next one begins."""
    lines = wrap(text, COLUMNS, break_long_words=True) or [""]
    height = LINE * len(lines) + 18
    spans = "".join(
        f'<text x="{LEFT + 14}" y="{top + 42 + LINE * n}">{escape(line)}</text>' for n, line in enumerate(lines)
    )
    box = f'<rect class="{kind}" x="{LEFT}" y="{top + 20}" width="{WIDTH - 2 * LEFT}" height="{height}" rx="6"/>'
    return f'<text class="label" x="{LEFT}" y="{top + 12}">{escape(label)}</text>{box}{spans}', top + height + 40


def bars(story: Story, top: int) -> tuple[str, int]:
    """The three probabilities of the right name."""

    def rows() -> Iterator[str]:
        shown = (
            ("before", story.alone),
            ("with the hint above: the teacher", story.hinted),
            ("after training, without the hint", story.trained),
        )
        for number, (label, value) in enumerate(shown):
            y = top + 18 + 30 * number
            yield f'<text class="label" x="{LEFT}" y="{y + 14}">{label}</text>'
            yield f'<rect class="rail" x="320" y="{y}" width="420" height="18" rx="4"/>'
            yield f'<rect class="bar" x="320" y="{y}" width="{max(2, 420 * value):.0f}" height="18" rx="4"/>'
            yield f'<text x="752" y="{y + 14}">{value:.1%}</text>'

    title = f'<text class="label" x="{LEFT}" y="{top + 6}">Probability of the right name, {escape(story.right)}</text>'
    return title + "".join(rows()), top + 126


def draw(story: Story) -> str:
    """The picture."""
    top, parts = 24, []
    for kind, label, text in (
        ("card", "A held-out prompt", story.question),
        ("wrong", "Before: it calls a tool that the prompt does not list", story.before),
        ("hint", "A rule writes a hint right above that call; only the teacher reads it", story.hint),
    ):
        part, top = card(kind, label, text, top)
        parts.append(part)
    part, top = bars(story, top)
    parts.append(part)
    part, top = card("right", "After: the same prompt, without any hint", story.after, top)
    size = f'width="{WIDTH}" height="{top}" viewBox="0 0 {WIDTH} {top}"'
    page = f'<rect class="page" width="{WIDTH}" height="{top}" rx="8"/>'
    inner = "\n".join([page, *parts, part])
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>\n<style>{STYLE}</style>\n{inner}\n</svg>\n'


def main(run: Path, file: Path) -> None:
    """Draw the story in which the hint says most, among those that training has put right."""
    righted = [story for story in stories(run) if story.correct]
    if not righted:
        raise SystemExit(f"{run}: no recorded held-out call of an unknown tool is right after training")
    file.write_text(draw(max(righted, key=lambda story: story.hinted - story.alone)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
