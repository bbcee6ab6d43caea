"""From what a request asks for to what travels through the server: token ids of companions, and the methods.

The frontend writes a plan into the request's private arguments; the engine core takes the companions out of it; the
workers read the methods. Everything is JSON-safe, and nothing here knows vLLM.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from lmguide import contexts
from lmguide.gates import Entropy
from lmguide.guidance import Guidance
from lmguide.sources.binding import bind
from lmguide.sources.ids import pack
from lmguide.sources.rows import RowBuilder
from lmguide.vllm.parameters import PRIVATE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from transformers import PreTrainedTokenizerBase

    from lmguide.vllm.parameters import Requested

PLAN = f"{PRIVATE}_plan"
"""Key of a `Plan`, from the frontend to the engine core."""
ROW = f"{PRIVATE}_row"
"""Key of a `Row`, from the engine core to the workers."""
SUFFIX = "::lmguide-"
"""Between a request's id and the number of its companion."""


@dataclass(frozen=True)
class Companion:
    """One hidden companion of a request.

    Attributes:
        ids: Its prompt; or, behind, what follows the conditional's prompt and answer.
        behind: Whether it runs behind the conditional's own tokens (`Suffix`).
    """

    ids: list[int]
    behind: bool = False


@dataclass(frozen=True)
class Plan:
    """What the engine core needs to know of a guided request.

    Attributes:
        methods: Descriptions as of `Guidance.to_dict`, with prompts left out: they are in the companions.
        wiring: For each method, by the name its rule uses, the number of the companion or the name of the guide.
        companions: The distinct contexts.
        selective: Whether companions need not run on every step: there are none, or every method has a gate that the
            conditional's law alone can close.
        reads: Whether some method reads what was written, in the worker.
    """

    methods: list[dict[str, Any]]
    wiring: list[dict[str, int | str]]
    companions: list[Companion]
    selective: bool
    reads: bool = False

    @property
    def behind(self) -> bool:
        """Whether some companion runs behind the conditional's own tokens."""
        return any(companion.behind for companion in self.companions)

    def arguments(self) -> dict[str, Any]:
        """The plan as private arguments of a request."""
        companions = [dict(vars(companion)) for companion in self.companions]
        return {PLAN: {**vars(self), "companions": companions}}


@dataclass(frozen=True)
class Served:
    """What is known of the served model where no model is loaded.

    Attributes:
        vocab_size: Ids are below it.
        bos_token_id: Of the model's configuration, used if the tokenizer has none.
        tokenizer: The server's; `None` if it runs without.
        max_model_len: Longest sequence of the server.
    """

    vocab_size: int
    bos_token_id: int | None
    tokenizer: PreTrainedTokenizerBase | None
    max_model_len: int


def make_plan(requested: Requested, prompt: Sequence[int] | None, served: Served) -> Plan:
    """Turn contexts into token ids.

    Args:
        requested: What the request asks for.
        prompt: The request's own token ids; `None` when it came as embeddings.
        served: The served model.

    Raises:
        ValueError: A context cannot be made from what there is, holds ids that are none, or leaves no room to answer.
    """
    found: list[contexts.Context] = []
    wiring = []
    for method in requested.methods:
        names: dict[str, int | str] = {}
        for name, context in ({} if method.is_reward else method.sources()).items():
            if isinstance(context, contexts.OtherModel):
                names[name] = str(context.model)
                continue
            if context not in found:
                found.append(context)
            names[name] = found.index(context)
        wiring.append(names)
    builder = _builder(prompt, served)
    companions = [_companion(context, builder, requested.negative) for context in found]
    for companion in companions:
        length = len(companion.ids) + (len(prompt or ()) if companion.behind else 0)
        if length >= served.max_model_len:
            raise ValueError(
                f"negative_prompt: {length} tokens leave no room in a context of {served.max_model_len}. Shorten it."
            )
    gates = [method.when() for method in requested.methods]
    readers = any(reads(method) for method in requested.methods)
    return Plan(
        methods=[_without_prompts(method).to_dict() for method in requested.methods],
        wiring=wiring,
        companions=companions,
        selective=not companions or (not readers and all(gate is not None and not gate.needs_uncond for gate in gates)),
        reads=readers,
    )


def reads(method: Guidance) -> bool:
    """Whether a method reads what was written, in the worker."""
    return method.is_reward or any(isinstance(context, contexts.OtherModel) for context in method.sources().values())


def read_plan(arguments: Mapping[str, Any] | None) -> Plan | None:
    """The plan in a request's arguments, if it is guided."""
    data = (arguments or {}).get(PLAN)
    if data is None:
        return None
    return Plan(**{**data, "companions": [Companion(**companion) for companion in data["companions"]]})


@dataclass(frozen=True)
class Row:
    """What a worker knows of one request of a group.

    Attributes:
        group: The conditional's request id.
        number: 0 for the conditional, then its companions.
        law: How the conditional is combined with its companions; `None` for those.
        alone: Whether the conditional may be run without them.
        parks: Whether its law is to be kept when it asks for them: they come back without it.
        signed: Whether what comes after guidance looks at the sign of scores, as a repetition penalty does: then they
            are log-probabilities on every step, guided or not, and otherwise scores that may lack a constant.
    """

    group: str
    number: int
    law: Law | None = None
    alone: bool = False
    parks: bool = False
    signed: bool = False


@dataclass(frozen=True)
class Law:
    """A plan as the arithmetic needs it.

    Attributes:
        methods: The methods.
        wiring: As in `Plan`.
        strengths: Of each method.
        key: Equal for laws that differ in strengths only, which are worked out as one batch.
        companions: How many there are.
        total: Tokens the answer may have.
        reads: Whether some method reads what was written.
    """

    methods: tuple[Guidance, ...]
    wiring: tuple[Mapping[str, int | str], ...]
    strengths: tuple[float, ...]
    key: str
    companions: int
    total: int | None
    reads: bool

    @cached_property
    def looks_at_progress(self) -> bool:
        """Whether some method may look at how far the answer is; of gates only that of entropy surely does not."""
        return any(
            method.schedule is not None or not isinstance(method.when(), Entropy | None) for method in self.methods
        )

    @cached_property
    def gated(self) -> bool:
        """Whether some method has a gate."""
        return any(method.when() is not None for method in self.methods)

    @cached_property
    def weight(self) -> float | None:
        """Where gates are open the scores are `c + weight * (companion - c)`, if there is one and they are that."""
        total = 0.0
        for method, wires, strength in zip(self.methods, self.wiring, self.strengths, strict=True):
            parts = None if method.schedule is not None else method.linear_weights(strength)
            if parts is None or any(wires[name] != 0 for name in parts):
                return None
            total += sum(parts.values())
        return total

    @cached_property
    def least_entropy(self) -> float:
        """Nats above which some method applies, of a law that does not look at progress; minus infinity is always."""
        gates = [method.when() for method in self.methods]
        return min(gate.threshold if isinstance(gate, Entropy) else -math.inf for gate in gates)


def row_arguments(
    group: str,
    number: int,
    plan: Plan | None = None,
    total: int | None = None,
    **flags: bool,
) -> dict[str, Any]:
    """A row as private arguments of a request; the conditional's carries its plan and the flags of a `Row`."""
    row: dict[str, Any] = {"group": group, "number": number, **flags}
    if plan is not None:
        row["law"] = json.dumps([plan.methods, plan.wiring, total])
    return {ROW: row}


def read_row(arguments: Mapping[str, Any] | None) -> Row | None:
    """The row in a request's arguments, if it is one of a group."""
    data = (arguments or {}).get(ROW)
    if data is None:
        return None
    return Row(**{**data, "law": _read_law(data["law"]) if "law" in data else None})


@lru_cache(4096)  # a row is read again whenever its request comes back into the batch
def _read_law(text: str) -> Law:
    described, wiring, total = json.loads(text)
    methods = tuple(map(Guidance.from_dict, described))
    pairs = zip(described, methods, strict=True)
    plain = [{k: v for k, v in fields.items() if k != method.strength_field} for fields, method in pairs]
    wires = [wire for names in wiring for wire in names.values() if isinstance(wire, int)]
    return Law(
        methods=methods,
        wiring=tuple(wiring),
        strengths=tuple(float(getattr(method, method.strength_field)) for method in methods),
        key=json.dumps([plain, wiring], sort_keys=True),
        companions=1 + max(wires, default=-1),
        total=total,
        reads=any(map(reads, methods)),
    )


def _builder(prompt: Sequence[int] | None, served: Served) -> RowBuilder:
    """The library's own maker of rows, with a stand-in for the model, of which it reads numbers only."""
    numbers = SimpleNamespace(
        vocab_size=served.vocab_size, bos_token_id=served.bos_token_id, pad_token_id=None, eos_token_id=None
    )
    config = SimpleNamespace(get_text_config=lambda decoder: numbers)
    model: Any = SimpleNamespace(config=config, generation_config=numbers)
    device = torch.device("cpu")
    rows = None if prompt is None else pack([list(prompt)], device)
    return RowBuilder(rows, 1, model, served.tokenizer, device)


def _companion(context: contexts.Context, builder: RowBuilder, negative: Mapping[str, Any] | None) -> Companion:
    if isinstance(context, contexts.Suffix):
        return Companion(builder.suffix(context).tokens()[0], behind=True)
    return Companion(bind(context, builder, negative)[1].tokens()[0])


def _without_prompts(method: Guidance) -> Guidance:
    """The method without the prompts of the request: what is left is equal for many requests."""
    names = vars(method)
    changes: dict[str, Any] = {}
    if names.get("negative_prompt") is not None:
        changes["negative_prompt"] = None
    if isinstance(names.get("prompts"), tuple):
        changes["prompts"] = ("",) * len(names["prompts"])
    return replace(method, **changes) if changes else method
