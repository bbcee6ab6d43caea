"""What guidance towards a mood does to the bundled tales, measured beside the closed form of a perfect judge.

    PYTHONPATH=. python scripts/measure_mood.py [--tales 1280] [--seed 0] [--only caif]

Prints Markdown tables: one row for each method with shares of words and sentences, and what the tales model itself
knows of the moods. One CPU thread; all of it takes about half an hour, `--only` runs the rows whose name holds a word.
"""

from __future__ import annotations

import argparse
import math
import random
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

import lmguide as lg
from lmguide.training import tales
from lmguide.training.mood_law import guided_mood

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BATCH = 160
"""Tales that are sampled at once."""
LONGEST = 120
"""Tokens; a tale has at most about 100."""
NEGATIVE_PROMPT = "A tale:"


@dataclass(frozen=True)
class Measured:
    """Shares in sampled tales.

    Attributes:
        glad: Of the mood words, those that are glad.
        error: Standard error of that, by the spread over tales: words of one tale depend on each other.
        on_topic: Of the sentences, those on the topic of their prompt.
        grammatical: Of the sentences, those that match a template.
        mood_words: Per tale.
    """

    glad: float
    error: float
    on_topic: float
    grammatical: float
    mood_words: float


def measure(methods: Sequence[lg.Guidance], count: int, seed: int, **call: Any) -> Measured:
    """Sample tales on all topics and score them.

    Args:
        methods: How to guide; none is the plain model.
        count: Tales, a multiple of the number of topics.
        seed: Of the first topic; the next has one more.
        call: More arguments of `generate`.
    """
    model, tokenizer = lg.bundled("tales")
    guided: Any = lg.guide(model, list(methods), tokenizer=tokenizer) if methods else model
    scores: list[tales.TaleScore] = []
    options: dict[str, Any] = {"do_sample": True, "top_k": 0, "max_new_tokens": LONGEST} | call
    for place, topic in enumerate(tales.TOPICS):
        torch.manual_seed(seed + place)
        inputs = tokenizer(tales.prompt(topic), return_tensors="pt")
        left = count // len(tales.TOPICS)
        while left:
            rows = min(left, BATCH)
            found = guided.generate(**inputs, num_return_sequences=rows, **options)
            answers = found[:, inputs["input_ids"].shape[1] :]
            scores += [tales.score(text, topic) for text in tokenizer.batch_decode(answers, skip_special_tokens=True)]
            left -= rows
    total = sum(scores, tales.TaleScore())
    glad = total.glad / total.mood_words
    spread = math.fsum((score.glad - glad * score.mood_words) ** 2 for score in scores)
    return Measured(
        glad=glad,
        error=math.sqrt(spread) / total.mood_words,
        on_topic=total.on_topic / total.sentences,
        grammatical=total.grammatical / total.sentences,
        mood_words=total.mood_words / len(scores),
    )


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        name: What stands in it.
        methods: How to guide.
        strength: Of a judge whose effect has the closed form; `None` is another.
        top_k: Tokens that sampling is cut to; 0 is all.
    """

    name: str
    methods: tuple[lg.Guidance, ...]
    strength: float | None = None
    top_k: int = 0


def rows(gedi: PreTrainedModel, classifier: PreTrainedModel) -> list[Row]:
    """The table, from top to bottom."""

    def judge(omega: float, **more: Any) -> lg.GeDi:
        return lg.GeDi(gedi, more.pop("code", " glad"), omega=omega, **more)

    def caif(alpha: float, **more: Any) -> lg.CAIF:
        return lg.CAIF(classifier, more.pop("label", "glad"), alpha=alpha, top_k=20, **more)

    cfg, gate = lg.CFG(2.0, NEGATIVE_PROMPT), lg.Entropy(1.0)
    filtered = {"form": "normalized", "filter_p": 0.8, "target_p": 0.8}
    strengths = (1.0, 2.0, 5.0, 10.0)
    return [
        Row("none", (), 0.0),
        Row("none, `top_k=20`", (), 0.0, top_k=20),
        *(Row(f"GeDi, exact, ω = {omega:g}", (judge(omega),), omega) for omega in (*strengths, 30.0)),
        *(Row(f"GeDi, normalised, ω = {w:g}", (judge(w, form="normalized"),)) for w in (*strengths, 30.0)),
        Row("GeDi, normalised, ω = 30, filtered by 0.8 and 0.8", (judge(30.0, **filtered),)),
        *(Row(f"CAIF, α = {alpha:g}", (caif(alpha),), alpha) for alpha in strengths),
        Row('CAIF, α = 5, `rest="mean"`', (caif(5.0, rest="mean"),), 5.0),
        Row("FUDGE, λ = 1, `top_k=200`", (lg.Fudge(classifier, "glad"),), 1.0),
        Row("GeDi, exact, ω = 5, where the entropy is 1 or more", (judge(5.0, gate=gate),)),
        Row("CAIF, α = 5, where the entropy is 1 or more", (caif(5.0, gate=gate),)),
        Row("GeDi, exact, ω = 5, wanted grim", (judge(5.0, code=" grim"),), -5.0),
        Row("CAIF, α = 5, wanted grim", (caif(5.0, label="grim"),), -5.0),
        Row("`CFG(2)`", (cfg,), 0.0),
        Row("`CFG(2)`, `top_k=20`", (cfg,), 0.0, top_k=20),
        Row("`CFG(2)` and GeDi, exact, ω = 5", (cfg, judge(5.0)), 5.0),
        Row("`CFG(2)` and CAIF, α = 5", (cfg, caif(5.0)), 5.0),
        Row('`CFG(2)` and CAIF, α = 5, `rest="mean"`', (cfg, caif(5.0, rest="mean")), 5.0),
    ]


def known_moods(tokenizer: PreTrainedTokenizerBase, model: Any, documents: int = 600) -> dict[int, tuple[float, int]]:
    """How far the tales model tells the mood of a tale from the words so far.

    Returns:
        Glad words less grim ones before an adjective → the mean probability that it will be glad, and how many there
        were. Leads below 0 are counted with the moods exchanged.
    """
    ids = {
        tokenizer(f" {word}", add_special_tokens=False)["input_ids"][0]: mood
        for mood, words in tales.MOODS.items()
        for word in words.adjectives
    }
    glad = [token for token, mood in ids.items() if mood == "glad"]
    rng = random.Random("known moods")
    shares: dict[int, list[float]] = defaultdict(list)
    for _ in range(documents):
        topic = rng.choice(list(tales.TOPICS))
        prompt, tale = tales.prompt(topic), f" {tales.tale(rng, topic)}"
        inputs = tokenizer(prompt + tale, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            law = model(inputs).logits[0].softmax(-1)
        for place, token in enumerate(inputs[0].tolist()):
            if token in ids:
                before = tales.score_sentence(f"{tokenizer.decode(inputs[0, :place])} ", topic)
                lead = 2 * before.glad - before.mood_words
                share = float(law[place - 1, glad].sum() / law[place - 1, list(ids)].sum())
                shares[abs(lead)].append(share if lead >= 0 else 1 - share)
    return {lead: (sum(found) / len(found), len(found)) for lead, found in sorted(shares.items())}


def writer_of(known: dict[int, tuple[float, int]]) -> float:
    """The agreement that explains `known_moods` best, in the sense of least squares."""

    def distance(agree: float) -> float:
        squares = []
        for lead, (share, count) in known.items():
            belief = 1 / (1 + ((1 - agree) / agree) ** lead)
            squares.append(count * (share - belief * agree - (1 - belief) * (1 - agree)) ** 2)
        return math.fsum(squares)

    return min((step / 1000 for step in range(500, 751)), key=distance)


def main() -> None:
    """Print the tables."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--tales", type=int, default=1280, help="for each row (default 1280)")
    options.add_argument("--seed", type=int, default=0, help="(default 0)")
    options.add_argument("--only", default="", help="rows whose name holds this")
    given = options.parse_args()
    torch.set_num_threads(1)
    model, tokenizer = lg.bundled("tales")

    def spell(text: str) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    known = known_moods(tokenizer, model)
    writer = writer_of(known)
    print("| lead of glad words | next is glad, `tales` | perfect model | adjectives |\n|---|---|---|---|")
    for lead, (share, count) in known.items():
        belief = 1 / (1 + ((1 - tales.AGREE) / tales.AGREE) ** lead)
        perfect = belief * tales.AGREE + (1 - belief) * (1 - tales.AGREE)
        print(f"| {lead} | {_share(share)} | {_share(perfect)} | {count} |")
    print(f"\nas if mood words agreed with probability {writer:.3f}\n")
    print("| method | glad words | predicted | on topic | grammatical | mood words |")
    print("|---|---|---|---|---|---|")
    _print_rows(given, spell, writer)


def _print_rows(given: argparse.Namespace, spell: Callable[[str], list[int]], writer: float) -> None:
    asked = [
        row for row in rows(lg.bundled("mood_gedi")[0], lg.bundled("mood_classifier")[0]) if given.only in row.name
    ]
    for row in tqdm(asked, disable=None):
        found = measure(row.methods, given.tales, given.seed, top_k=row.top_k)
        predicted = ""
        if row.strength is not None:
            glad = guided_mood(abs(row.strength), spell, writer).glad
            predicted = _share(glad if row.strength >= 0 else 1 - glad)
        cells = [
            f"{_share(found.glad)} ± {_share(found.error)}",
            predicted,
            _share(found.on_topic),
            _share(found.grammatical),
            f"{found.mood_words:.2f}",
        ]
        tqdm.write(f"| {row.name} | {' | '.join(cells)} |")


def _share(value: float) -> str:
    return f"{value:.3f}".removeprefix("0")


if __name__ == "__main__":
    main()
