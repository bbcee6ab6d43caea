"""The logits processor that vLLM loads in every worker: it knows which rows of a batch belong together.

One class for both model runners, because vLLM has one list of processors for both and each refuses the other's. The
scores are combined in `patches`, before grammars, biases and penalties touch them, which is earlier than a processor is
called: so `apply` has nothing left to do.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from vllm.v1.sample.logits_processor.builtin import process_dict_updates
from vllm.v1.sample.logits_processor.interface import LogitsProcessor as RowProcessor
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcessor as SlotProcessor

from lmguide.vllm import combine, patches
from lmguide.vllm.entropies import entropies_for
from lmguide.vllm.parameters import read
from lmguide.vllm.plan import read_row
from lmguide.vllm.rewards import Rewards

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from torch import Tensor

    from lmguide.vllm.plan import Law, Row

    Seat: TypeAlias = tuple[Row, list[int], list[int]]
    """Who sits there, its prompt, and its answer so far, which grows; on V2 only of those whose law reads them."""

logger = logging.getLogger("vllm.lmguide")


class GuidanceProcessor(RowProcessor, SlotProcessor):  # type: ignore[misc]
    """Who sits where in the batch, for model runner V1 (by row) and V2 (by slot).

    Args:
        vllm_config: The server's configuration.
        *rest: V1: the device and whether memory is pinned. V2: the states of requests.
    """

    def __init__(self, vllm_config: Any, *rest: Any) -> None:
        self.states = rest[0] if len(rest) == 1 else None
        device = rest[0] if self.states is None else self.states.device
        self.seats: dict[int, Seat] = {}
        self.rewards = Rewards(vllm_config, device)
        self.entropies = entropies_for(vllm_config, device)
        self.wanting: list[int] = []
        """Rows of conditionals that ran alone and need their companions."""
        self.faulty: list[int] = []
        """Rows with a fault of which no token may come, since there is no companion to differ from."""
        self.drawn: list[tuple[int, str]] = []
        """Rows of companions that draw for a parked conditional, and its request."""
        self._parked: dict[str, combine.Guided] = {}
        """Conditionals without a row, by their request."""
        self._copies: list[tuple[int, int]] = []
        self._spoilt: list[int] = []
        patches.install_worker(GuidanceProcessor, slots=self.states is not None)

    @property
    def reads(self) -> bool:
        """Whether some law reads what was written."""
        return any(seat.law is not None and seat.law.reads for seat, *_ in self.seats.values())

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Refuse bad arguments in the frontend.

        Raises:
            ValueError: What is wrong with which key; vLLM answers HTTP 400.
        """
        if read(sampling_params.extra_args) is not None and (problem := patches.problem()):
            raise ValueError(f"guidance: {problem}")

    def is_argmax_invariant(self) -> bool:
        """True: `apply` changes nothing."""
        return True

    def update_state(self, batch_update: Any) -> None:
        """V1: follow requests as they enter, leave and move."""
        process_dict_updates(self.seats, batch_update, _seat)
        self.rewards.keep({row.group for row, *_ in self.seats.values()})

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """V2: take a slot; false, because `apply` changes nothing."""
        self.seats.pop(req_idx, None)
        if (seat := _seat(sampling_params, [], [])) is not None:
            self.seats[req_idx] = seat
        return False

    def apply(self, logits: Tensor, ctx: Any = None) -> Tensor:
        """The logits as they are: the guided rows were combined before."""
        return logits

    def guide_rows(self, logits: Tensor) -> Tensor:
        """V1: combine the guided rows of `[rows, V]`."""
        return self._guide(logits, sorted(self.seats.items(), key=lambda item: item[0]), self._answered)

    def guide_slots(self, logits: Tensor, batch: Any) -> Tensor:
        """V2: the same, where row `i` belongs to slot `batch.idx_mapping_np[i]`."""
        assert self.states is not None
        prompts = self.states.prompt_len.np
        slots = batch.idx_mapping_np.tolist()
        lengths = batch.seq_lens_cpu_upper_bound

        def answered(row: int) -> int:
            return int(lengths[row]) - int(prompts[slots[row]])  # negative in a chunk of the prompt

        found = [(row, self.seats[slot]) for row, slot in enumerate(slots) if slot in self.seats]
        self.rewards.keep({seat.group for _, (seat, *_) in found})
        reading = [row for row, (seat, *_) in found if seat.law is not None and seat.law.reads and answered(row) >= 0]
        self._fetch({slots[row]: int(lengths[row]) for row in reading})
        return self._guide(logits, found, answered)

    def _fetch(self, lengths: Mapping[int, int]) -> None:
        """V2: bring what was written since the last time from the device; it stands there before the next step."""
        assert self.states is not None
        new = []
        for slot, length in lengths.items():
            _, prompt, answer = self.seats[slot]
            new += [(slot, place) for place in range(len(prompt) + len(answer), length)]
        if not new:
            return
        where = torch.tensor(new, device=self.states.device)
        for (slot, place), token in zip(
            new, self.states.all_token_ids.gpu[where[:, 0], where[:, 1]].tolist(), strict=True
        ):
            _, prompt, answer = self.seats[slot]
            (prompt if place < self.states.prompt_len.np[slot] else answer).append(token)

    def copy_tokens(self, sampled: Tensor) -> None:
        """Let companions take their conditional's token; one that differs tells the scheduler of a fault.

        Args:
            sampled: `[rows, 1]`, in place. Equal logits would not do: a seeded request has a generator of its own, and
                the noise of V2 depends on the position.
        """
        if self._copies:
            rows, companions = torch.tensor(self._copies, device=sampled.device).T
            sampled[companions] = sampled[rows]
        for companion in self._spoilt:
            sampled[companion] = (sampled[companion] - 1).abs()
        self._copies, self._spoilt = [], []

    def keep(self, requests: Collection[str]) -> None:
        """Forget the parked conditionals that are not among these requests."""
        self._parked = {request: parked for request, parked in self._parked.items() if request in requests}

    def withhold(self, sampled: Tensor, rejected: Tensor) -> None:
        """V2: let no token come of rows that need their companions or have a fault, as of a chunk amid a prompt.

        Args:
            sampled: `[rows]`, how many tokens came of each, in place.
            rejected: `[rows]`, how many of its tokens a row is to run again, in place: the one it sampled from, if any.
        """
        for row in self.wanting:
            rejected[row] = sampled[row]
        for row in self.wanting + self.faulty:
            sampled[row] = 0

    def _answered(self, row: int) -> int:
        return len(self.seats[row][2])

    def _guide(self, logits: Tensor, seats: Iterable[tuple[int, Seat]], answered: Callable[[int], int]) -> Tensor:
        self.wanting, self.faulty, self.drawn, self._copies, self._spoilt = [], [], [], [], []
        members: dict[str, dict[int, int]] = {}
        heads: list[tuple[int, Row, Law, int]] = []
        texts: dict[str, combine.Text] = {}
        for row, (seat, prompt, answer) in seats:
            if seat.law is None:
                members.setdefault(seat.group, {})[seat.number] = row
            elif (step := answered(row)) >= 0:
                heads.append((row, seat, seat.law, step))
                if seat.law.reads:
                    texts[seat.group] = combine.Text(seat.group, prompt, answer)
        full, alone = [], {}
        self.rewards.see(texts)
        for row, seat, law, step in heads:
            self._parked.pop(seat.group, None)
            if (companions := _companions(law, members.get(seat.group, {}))) is not None:
                full.append(combine.Guided(law, row, companions, step, texts.get(seat.group), signed=seat.signed))
            elif seat.alone:
                alone[row] = seat, combine.Guided(law, row, (), step, signed=seat.signed)
        for request, guided in self._parked.items():
            if companions := _companions(guided.law, members.get(request, {})):
                full.append(replace(guided, row=companions[0], companions=companions))
                self.drawn.append((companions[0], request))
        if full or alone:
            logits = logits.float()
        if alone:
            self._ask(logits, alone)
        if full:
            for guided, fault in zip(full, combine.guide(logits, full, self.rewards), strict=True):
                self._copies += [(guided.row, companion) for companion in guided.companions]
                if fault is not None:
                    logger.error("lmguide: a fault in guidance fails its request", exc_info=fault)
                    if guided.companions and guided.kept is None:
                        self._spoilt.append(guided.companions[0])
                    else:
                        self.faulty.append(guided.row)
        return logits

    def _ask(self, logits: Tensor, alone: Mapping[int, tuple[Row, combine.Guided]]) -> None:
        """See which of the rows without companions want them, and keep those of conditionals that will be parked.

        Args:
            logits: `[rows, V]`, float32; rows on which nothing is done may become log-probabilities, in place.
            alone: By row, who sits there and its step.
        """
        batch = [guided for _, guided in alone.values()]
        wanting = combine.wanting(logits, batch, self.entropies)
        self.wanting = [each.row for each, wants in zip(batch, wanting, strict=True) if wants]
        for row in self.wanting:
            seat, guided = alone[row]
            if seat.parks:
                self._parked[seat.group] = replace(guided, kept=logits[row].clone())
        for row, (seat, _) in alone.items():
            if seat.signed and row not in self.wanting:
                logits[row] = logits[row].log_softmax(-1)


def _companions(law: Law, rows: Mapping[int, int]) -> tuple[int, ...] | None:
    """The rows of a law's companions, if all are there."""
    if len(rows) < law.companions:
        return None
    return tuple(rows[number] for number in range(1, law.companions + 1))


def _seat(params: Any, prompt: list[int] | None, answer: list[int]) -> Seat | None:
    row = read_row(params.extra_args)
    return None if row is None else (row, [] if prompt is None else prompt, answer)
