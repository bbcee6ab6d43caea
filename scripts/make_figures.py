"""Draws the figures of the documentation: `python scripts/make_figures.py` (half a minute on one core).

It measures what it shows on the bundled model; nothing is drawn from stored numbers.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import torch
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.legend_handler import HandlerTuple
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter
from tqdm import tqdm

import lmguide as lg
from lmguide.cli.demo import Sample, measure
from lmguide.schedules import Progress
from lmguide.training import tales

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

    from lmguide.schedules import Schedule

FIGURES = Path(__file__).resolve().parents[1] / "docs" / "figures"
NEGATIVE_PROMPT = "A tale:"
SCALES = (0.0, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0)
TOPIC = "the sea"
SHOWN_SCALE = 3.0
BEGINNING = "The weary"
"""What the right-hand panel has the answer begin with: next comes the word that settles the sentence's topic."""

INK, GREY, PALE = "#24292f", "#6e7781", "#c9d1d9"
BLUE, ORANGE = "#0969a8", "#bc4c00"
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    # The same numbers give the same file, byte for byte.
    "svg.hashsalt": "lmguide",
}


@dataclass(frozen=True)
class Candidate:
    """A next token with its probability without and with guidance."""

    word: str
    topic: str
    before: float
    after: float


def main() -> None:
    """Draw every figure."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--sentences", type=int, default=256, help="per scale and topic (default 256)")
    options.add_argument("--out", type=Path, default=FIGURES, help="folder (default docs/figures)")
    arguments = options.parse_args()
    # A model this small takes longer to hand work to a second thread than to do it.
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):
        figures = {"guidance": guidance(arguments.sentences), "schedules": schedules()}
        for name, figure in figures.items():
            path = arguments.out / f"{name}.svg"
            figure.savefig(path, metadata={"Date": None})
            print(f"Wrote {path}")


def guidance(sentences: int) -> Figure:
    """Guidance at work: sentences on the topic over the scale, and one next-token law before and after.

    Args:
        sentences: To sample for each scale and topic.
    """
    figure = _figure(4.5)
    left, right = figure.subplots(1, 2, width_ratios=(1.1, 1))
    found = [(scale, _mean_sample(scale, sentences)) for scale in tqdm(SCALES, unit="scale", disable=None)]
    _draw_shares(left, found, sentences * len(tales.TOPICS))
    laws = candidates()
    _draw_candidates(right, _shown(laws), _shares(laws))
    return figure


def candidates() -> list[Candidate]:
    """Every word that can settle the topic of the first sentence, at the place where it is due."""
    model, tokenizer = lg.bundled("tales")
    guided = lg.guide(model, lg.CFG(SHOWN_SCALE), tokenizer=tokenizer)
    inputs = tokenizer(f"{tales.prompt(TOPIC)} {BEGINNING}", return_tensors="pt")
    # Both contexts must stand before the same word.
    negative = f"{NEGATIVE_PROMPT} {BEGINNING}"
    traced = lg.trace(guided, **inputs, negative_prompt=negative, max_new_tokens=1, top=model.config.vocab_size)
    step = traced.rows[0][0]
    before, after = ({tokenizer.decode([token]): share for token, share in law} for law in (step.before, step.after))
    return [
        Candidate(word, topic, before[f" {word}"], after[f" {word}"])
        for topic in sorted(tales.TOPICS, key=lambda name: name != TOPIC)
        for word in sorted(tales.TOPICS[topic].agents, key=lambda word: -before[f" {word}"])
    ]


def schedules() -> Figure:
    """The weights of the schedules over the share of the answer that stands."""
    drawn: dict[str, Schedule] = {
        "Constant()": lg.Constant(),
        "Linear()": lg.Linear(),
        "Cosine()": lg.Cosine(),
        "Beta(2, 2)": lg.Beta(2, 2),
        "Beta(1, 4)": lg.Beta(1, 4),
        "Window(0.2, 0.6)": lg.Window(0.2, 0.6),
    }
    figure = _figure(3.6)
    panels: list[Axes] = list(figure.subplots(2, 3, sharex=True, sharey=True).flat)
    steps = 200
    for panel, (name, schedule) in zip(panels, drawn.items(), strict=True):
        shares = [step / steps for step in range(steps)]
        weights = [schedule.weight(Progress(step, steps)) for step in range(steps)]
        panel.fill_between(shares, weights, color=BLUE, alpha=0.12, linewidth=0)
        panel.plot(shares, weights, color=BLUE, linewidth=2)
        panel.set_title(name, fontsize=10.5, fontfamily="DejaVu Sans Mono", fontweight="normal")
        panel.set(xlim=(0, 1), ylim=(0, 1.08), xticks=(0, 0.25, 0.5, 0.75, 1), yticks=(0, 1))
        panel.yaxis.set_ticklabels(["off", "full"])
        panel.xaxis.set_ticklabels(["0", "", "½", "", "1"])
    figure.supxlabel("share of max_new_tokens written so far", fontsize=10.5)
    return figure


def _figure(height: float) -> Figure:
    """A figure as wide as a page, with room at its borders: on a dark page the white has an edge."""
    return Figure(figsize=(9.6, height), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))


def _shown(laws: Sequence[Candidate]) -> list[Candidate]:
    """The words of `TOPIC` and the two likeliest of every other topic: more would be too small to read."""
    words: dict[str, list[Candidate]] = {}
    for candidate in laws:
        words.setdefault(candidate.topic, []).append(candidate)
    return [each for topic, all_of_it in words.items() for each in all_of_it[: None if topic == TOPIC else 2]]


def _shares(laws: Sequence[Candidate]) -> dict[str, tuple[float, float]]:
    """The probability of each topic before and after, all of its words together."""
    return {
        topic: (
            sum(each.before for each in laws if each.topic == topic),
            sum(each.after for each in laws if each.topic == topic),
        )
        for topic in dict.fromkeys(each.topic for each in laws)
    }


def _mean_sample(scale: float, sentences: int) -> Sample:
    """What sampling at a scale gave, averaged over the topics."""
    model, tokenizer = lg.bundled("tales")
    guided = lg.guide(model, lg.CFG(scale, NEGATIVE_PROMPT), tokenizer=tokenizer)
    found = [measure(guided, tokenizer, topic, sentences, seed) for seed, topic in enumerate(tales.TOPICS)]
    count = len(found)
    return Sample(
        on_topic=sum(sample.on_topic for sample in found) / count,
        error=math.sqrt(sum(sample.error**2 for sample in found)) / count,
        grammatical=sum(sample.grammatical for sample in found) / count,
        passes=found[0].passes,
    )


def _draw_shares(axes: Axes, found: Sequence[tuple[float, Sample]], sentences: int) -> None:
    scales = [scale for scale, _ in found]
    fine = [step / 50 for step in range(int(max(SCALES) * 50) + 1)]
    axes.axvline(1, color=PALE, linewidth=1, zorder=0)
    axes.plot(scales, [sample.grammatical for _, sample in found], "s:", color=ORANGE, markersize=4.5, linewidth=1)
    axes.plot(fine, [tales.predicted(scale) for scale in fine], color=BLUE, alpha=0.5, linewidth=2)
    axes.errorbar(
        scales,
        [sample.on_topic for _, sample in found],
        yerr=[2 * sample.error for _, sample in found],
        fmt="o",
        color=BLUE,
        markersize=5,
        capsize=3.5,
        linewidth=1.3,
    )
    axes.set(xlim=(-0.3, 8.3), ylim=(0, 1.1), xticks=SCALES, yticks=(0, 0.25, 0.5, 0.75, 1))
    axes.set_xticklabels([f"{scale:g}" for scale in SCALES])
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_xlabel("guidance_scale γ  (1 is off)")
    _headline(axes, "Sentences on the prompted topic", f"{sentences:,} sampled sentences at each γ")
    axes.text(8.3, 1.045, "grammatical", color=ORANGE, horizontalalignment="right")
    axes.text(3.4, 0.80, "measured, ± 2 standard errors", color=BLUE)
    axes.text(3.4, 0.72, "line: predicted in closed form", color=BLUE)


def _draw_candidates(axes: Axes, found: Sequence[Candidate], shares: dict[str, tuple[float, float]]) -> None:
    places: list[float] = []
    for above, candidate in zip([found[0], *found], found, strict=False):
        gap = 1.0 if candidate.topic == above.topic else 1.5
        places.append((places[-1] if places else 0.0) - gap)
    height = 0.4
    colours = [BLUE if candidate.topic == TOPIC else ORANGE for candidate in found]
    axes.barh([p + height / 2 for p in places], [c.before for c in found], height, color=PALE)
    axes.barh([p - height / 2 for p in places], [c.after for c in found], height, color=colours)
    for topic, (before, after) in shares.items():
        rows = [index for index, candidate in enumerate(found) if candidate.topic == topic]
        longest = max(max(found[index].before, found[index].after) for index in rows)
        middle = sum(places[index] for index in rows) / len(rows)
        text = f"{topic}\n{before:.0%} → {after:.0%}"
        colour = BLUE if topic == TOPIC else ORANGE
        axes.text(longest + 0.006, middle, text, color=colour, verticalalignment="center", linespacing=1.35)
    axes.set_yticks(places, [candidate.word for candidate in found])
    axes.tick_params(axis="y", length=0)
    axes.set(xlim=(0, 0.23), xticks=(0, 0.05, 0.1, 0.15))
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_xlabel("probability")
    key: list[Artist | tuple[Artist, ...]] = [Patch(color=PALE), (Patch(color=BLUE), Patch(color=ORANGE))]
    axes.legend(
        key,
        ["unguided", f"guided, γ = {SHOWN_SCALE:g}"],
        handler_map={tuple: HandlerTuple(ndivide=None, pad=0)},
        loc="lower right",
        frameon=False,
        borderaxespad=0.2,
    )
    _headline(axes, "One next word, unguided and guided", f"after “{tales.prompt(TOPIC)} {BEGINNING} …”")


def _headline(axes: Axes, title: str, below: str) -> None:
    """A bold title and a line of plain text under it."""
    axes.set_title(title, pad=24)
    axes.annotate(below, (0, 1), (0, 8), xycoords="axes fraction", textcoords="offset points", color=GREY)


if __name__ == "__main__":
    main()
