"""Word lists that a model writes when it is asked for examples of a topic."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from lmguide.descriptions.topics import listed
from lmguide.descriptions.words import WordLists, forms, singulars
from lmguide.sources.rewards.english import list_ended, read_list
from lmguide.sources.rewards.questions import Questions, asked_about, resolved
from lmguide.sources.rewards.spelling import spelling
from lmguide.sources.rewards.words import WordReward, writable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from lmguide.descriptions.topics import TopicExamples
    from lmguide.sources.rewards.base import Generation


def bind_examples(context: TopicExamples, generation: Generation) -> WordReward:
    """The reward of the words that a model lists.

    Raises:
        ValueError: No tokenizer, neither one topic nor one per prompt, or a model that lists nothing for any of them.
    """
    asked = Questions(context, generation)
    topics = asked_about(context, generation)
    extract = resolved("extract", context.extract) or read_list
    answers = asked.answers(
        [context.query.replace("{topic}", topic) for topic in topics],
        context.max_new_tokens,
        list_ended if extract is read_list else lambda answer: False,
    )
    words = {topic: tuple(extract(answer)) for topic, answer in zip(topics, answers, strict=True)}
    lists = _lists(context, words, generation)
    for topic in filter(None, listed(context.topic)):
        if not words[topic]:
            answer = answers[topics.index(topic)]
            warnings.warn(
                f"topic: expected examples of {topic!r} from the model, got {answer[:60]!r}, so that nothing is "
                "favoured. Ask in other words with query=, or give the words to WordGuidance.",
                stacklevel=2,
            )
    reward = WordReward(lists, generation)
    reward.forwards += asked.forwards
    reward.nfe += asked.nfe
    return reward


def _lists(context: TopicExamples, words: Mapping[str, tuple[str, ...]], generation: Generation) -> WordLists:
    """What a model has listed for each topic, as words to include and to exclude for each prompt."""
    spelled = spelling(generation.tokenizer, generation.vocab_size)

    def written(found: Iterable[str]) -> tuple[str, ...]:
        """Those that the guided model can write; in small letters too, because lists have capitals of their own."""
        small = (lambda word: word.lower()) if context.variants else str
        every = dict.fromkeys(form for word in found for form in (word, small(word)))
        return writable(every, context.variants, spelled, generation.tokenizer)

    include, exclude = [], []
    topics, avoids = listed(context.topic), listed(context.avoid)
    for prompt in range(max(len(topics), len(avoids))):
        topic, avoid = topics[prompt % len(topics)], avoids[prompt % len(avoids)]
        named = words[avoid] if avoid else ()
        unwanted = written([*filter(None, [avoid]), *named, *(one for word in named for one in singulars(word))])
        barred = {form for word in unwanted for form in forms(word, context.variants)}
        wanted = written(words[topic] if topic else ())
        include.append(tuple(word for word in wanted if not barred & set(forms(word, context.variants))))
        exclude.append(unwanted)
    if not any([*include, *exclude]):
        raise ValueError(
            f"topic: expected examples of {next(filter(None, topics + avoids))!r} from the model, got none that it can "
            "write. Ask in other words with query=, or give the words to WordGuidance."
        )
    return WordLists(tuple(include), tuple(exclude), context.beta, context.alpha, context.variants, context.exclude_at)
