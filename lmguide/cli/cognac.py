"""`lmguide cognac`: the Cognac benchmark, unguided and guided, kept in a folder of results and shown as tables."""

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from lmguide import __version__
from lmguide.cli.loading import load_model
from lmguide.cli.output import replacing
from lmguide.compact import parse_compact
from lmguide.eval import cognac
from lmguide.serialization import from_dict

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DEFAULT_GUIDANCE = "example_guidance:topic=<topic>,avoid=<constraint>"


@dataclass(frozen=True)
class Results:
    """What a file holds.

    Attributes:
        setting: How the answers were made.
        answers: Those there are, in the order of the items.
    """

    setting: cognac.Setting
    answers: tuple[cognac.Answer, ...] = ()


def run(arguments: argparse.Namespace) -> None:
    """Show items, or answer them and show how well.

    Raises:
        ImportError: nltk is not installed.
        OSError: A file cannot be written.
        ValueError: There is no WordNet, or an option, model or guidance is wrong.
    """
    if arguments.model is None and arguments.show is None:
        raise ValueError("--model: expected a folder or a name, got none. Name one, or look at items with --show 3.")
    texts = arguments.guidance or [DEFAULT_GUIDANCE]
    methods = [cognac.parse(parse_compact(text, "--guidance", DEFAULT_GUIDANCE)) for text in texts]
    items = cognac.build(cognac.read(arguments.wordnet, cognac.ROOTS), arguments.split, limit=arguments.limit)
    if arguments.show is not None:
        _show(items[: arguments.show])
        return
    options = ("chat", "max_new_tokens", "temperature", "top_p", "batch_size", "seed", "dtype")
    unguided = cognac.Setting(
        model=arguments.model,
        guidance=(),
        split=arguments.split,
        items=cognac.fingerprint(items),
        **{name: getattr(arguments, name) for name in options},
    )
    folder = Path(arguments.out) if arguments.out else None
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    load = cache(lambda: load_model(arguments))  # not at all where everything is there
    results = [
        _answered(setting, items, folder, load) for setting in (unguided, replace(unguided, guidance=tuple(methods)))
    ]
    names = {each.setting.name for each in results}
    if folder is not None:
        others = filter(None, (_stored(file) for file in sorted(folder.glob(f"{arguments.split}-*.json"))))
        same = (each for each in others if replace(each.setting, guidance=()) == unguided)
        results += [each for each in same if each.setting.name not in names and len(each.answers) == len(items)]
    _print(results)


def _answered(
    setting: cognac.Setting,
    items: Sequence[cognac.Item],
    folder: Path | None,
    load: Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerBase]],
) -> Results:
    """The answers of a setting, those that are missing made now."""
    file = None if folder is None else folder / f"{setting.name}.json"
    stored = _stored(file) if file is not None else None
    found = {answer.id: answer for answer in stored.answers} if stored is not None else {}
    if missing := len(items) - len(found):
        model, tokenizer = load()
        # The bar goes to stderr, and with `disable=None` only if that is a terminal.
        bar = tqdm(desc=setting.label[:40], total=missing, unit="item", leave=False, disable=None)
        with bar, warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = lambda message, *_: bar.write(f"lmguide: {message}", file=sys.stderr)
            for batch in cognac.answers(setting, model, tokenizer, items, found):
                found |= {answer.id: answer for answer in batch}
                bar.update(len(batch))
                if file is not None:
                    _store(file, Results(setting, tuple(found[item.id] for item in items if item.id in found)))
    return Results(setting, tuple(found[item.id] for item in items))


def _stored(file: Path) -> Results | None:
    """What a file holds; `None` if there is none, or, with a word on stderr, if it is broken."""
    if not file.exists():
        return None
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        return from_dict(Results, {name: data[name] for name in ("setting", "answers")})
    except (KeyError, TypeError, ValueError) as error:
        print(f"{file}: expected results of this command ({error}). They are made anew.", file=sys.stderr)
        return None


def _store(file: Path, results: Results) -> None:
    means = {name: asdict(mean) for name, mean in cognac.summary(results.answers).items()}
    data = {"benchmark": "cognac", "lmguide": __version__, "summary": means, **asdict(results)}
    with replacing(file) as text:
        json.dump(data, text, ensure_ascii=False, indent=1)


def _show(items: Sequence[cognac.Item]) -> None:
    for item in items:
        print(f"# {item.id}: topic {item.topic} ({len(item.topic_words)} words), without {item.constraint}")
        print(f"# forbidden: {', '.join(item.forbidden_words[:8])}{', ...' * (len(item.forbidden_words) > 8)}\n")
        print(f"{item.prompt.strip()}\n")


def _print(results: Sequence[Results]) -> None:
    """Two tables: whether instructions are followed, and what the texts are like."""
    first = results[0]
    console = Console(highlight=False, markup=False, color_system=None)
    setting = first.setting
    sampling = f"T {setting.temperature:g}, top-p {setting.top_p:g}" if setting.temperature else "greedy"
    which = f"{len(first.answers)} items of {setting.split} ({setting.items})"
    how = f"{sampling}, up to {setting.max_new_tokens} tokens, seed {setting.seed}"
    console.print(f"Cognac on WordNet: {which}, {setting.model}, {how}", soft_wrap=True)
    console.print("Shares in per cent, ± standard error; the difference is over the same items.")
    followed, texts = (
        _table("on topic", "violated", "on topic, not violated", "difference"),
        _table("perplexity", *(f"rep-{size}" for size in range(1, 5)), "passes/token"),
    )
    conform = {answer.id: answer.on_topic_not_violated for answer in first.answers}
    for each in results:
        means = cognac.summary(each.answers)
        gain = cognac.difference({answer.id: answer.on_topic_not_violated for answer in each.answers}, conform)
        shares = [_shown(means[name]) for name in cognac.METRICS]
        followed.add_row(each.setting.label, *shares, _shown(gain, "+") if each is not first and gain else "")
        repetition = [f"{means[f'repetition_{size}'].value:.3f}" for size in range(1, 5)]
        passes = f"{means['nfe_per_token'].value:.2f}"
        texts.add_row(
            each.setting.label,
            f"{means['perplexity'].value:.2f} ± {means['perplexity'].error:.2f}",
            *repetition,
            passes,
        )
    console.print(followed)
    console.print(texts)
    console.print("Perplexity is under the unguided model; rep-n is the share of repeated pieces of n words.")


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("guidance", overflow="fold")
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _shown(mean: cognac.Mean, sign: str = "") -> str:
    return f"{100 * mean.value:{sign}.1f} ± {100 * mean.error:.1f}"
