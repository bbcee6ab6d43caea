"""The decoding loop: the published loops token for token, windows, ends, infilling, noise, and what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

import lmguide as lg
from lmguide.diffusion.noise import RowNoise, keys_from
from tests.denoisers.models import MASK, VOCAB, canvas_of, denoiser_of, left_padded
from tests.diffusion import reference

if TYPE_CHECKING:
    from lmguide.denoisers import Denoiser

ANSWER = 8


def prompt_of(rows: int = 2, length: int = 5) -> torch.Tensor:
    return canvas_of(rows, length, 0)


def generate(denoiser: Denoiser | None = None, ids: torch.Tensor | None = None, **options: Any) -> Any:
    options = {"max_new_tokens": ANSWER, "steps": 4, "eos_token_id": (), **options}
    ids = prompt_of() if ids is None else ids
    if options.get("infill"):
        options["max_new_tokens"] = None
    return lg.diffusion.generate(denoiser or denoiser_of("llada"), ids, **options)


def noise_of(seed: int, rows: int, length: int, stream: str) -> reference.Uniform:
    """The loop's own noise, whose steps count from 1."""
    noise = RowNoise(keys_from(torch.Generator().manual_seed(seed), rows))
    return lambda step: noise.uniform(stream, step + 1, 0, length)


def assert_same(output: Any, expected: reference.Decoded) -> None:
    assert output.sequences.tolist() == expected.sequences.tolist()
    assert output.commit_step.tolist() == expected.commit_step.tolist()
    torch.testing.assert_close(output.confidences.double(), expected.confidence, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("scale", [1.0, 2.5])
@pytest.mark.parametrize(("block_length", "steps"), [(8, 8), (8, 3), (4, 4), (4, 2), (2, 4)])
def test_llada(block_length: int, steps: int, scale: float) -> None:
    denoiser, ids = denoiser_of("llada"), prompt_of()
    guidance = lg.CFG(scale)
    output = generate(denoiser, ids, block_length=block_length, steps=steps, guidance=guidance)
    expected = reference.llada_generate(
        denoiser, ids, mask_id=MASK, gen_length=ANSWER, block_length=block_length, steps=steps, cfg_scale=scale - 1
    )
    assert_same(output, expected)
    assert output.nfe.tolist() == [count * (1 if scale == 1 else 2) for count in expected.nfe]


def test_llada_in_random_order() -> None:
    denoiser, ids = denoiser_of("llada"), prompt_of()
    output = generate(denoiser, ids, order="random", generator=torch.Generator().manual_seed(7))
    expected = reference.llada_generate(
        denoiser,
        ids,
        mask_id=MASK,
        gen_length=ANSWER,
        block_length=ANSWER,
        steps=4,
        remasking="random",
        uniform=noise_of(7, 2, 5 + ANSWER, "order"),
    )
    assert_same(output, expected)


@pytest.mark.parametrize("alg", ["origin", "maskgit_plus", "topk_margin", "entropy"])
@pytest.mark.parametrize("steps", [3, 8, 12])
def test_dream(alg: Any, steps: int) -> None:
    denoiser, ids = denoiser_of("dream"), prompt_of()
    generator = torch.Generator().manual_seed(7)
    output = generate(denoiser, ids, steps=steps, order=f"dream:alg={alg}", generator=generator)
    noise = noise_of(7, 2, 5 + ANSWER, "order")
    expected = reference.dream_generate(
        denoiser, ids, mask_id=MASK, gen_length=ANSWER, steps=steps, alg=alg, uniform=noise
    )
    assert output.sequences.tolist() == expected.sequences.tolist()
    if alg != "origin":  # a row whose last step comes early has no further ones
        assert_same(output, expected)


@pytest.mark.parametrize(
    ("order", "options"),
    [
        ("threshold:threshold=0.3", {"threshold": 0.3}),
        ("threshold:threshold=0.05", {"threshold": 0.05}),
        ("factor:factor=2.0", {"factor": 2.0}),
    ],
)
def test_fast_dllm(order: str, options: dict[str, float]) -> None:
    denoiser, ids = denoiser_of("llada"), prompt_of()
    output = generate(denoiser, ids, order=order, block_length=4, steps=ANSWER)
    expected = reference.fast_dllm_generate(denoiser, ids, mask_id=MASK, gen_length=ANSWER, block_length=4, **options)
    assert output.sequences.tolist() == expected.sequences.tolist()
    assert output.nfe.tolist() == expected.nfe


def test_entropy_bound() -> None:
    denoiser, ids = denoiser_of("llada"), prompt_of()
    output = generate(denoiser, ids, order="entropy_bound:bound=4.0", steps=ANSWER)
    expected = reference.eb_generate(denoiser, ids, mask_id=MASK, gen_length=ANSWER, block_length=8, bound=4.0)
    assert output.sequences.tolist() == expected.sequences.tolist()
    assert output.nfe.tolist() == expected.nfe


FAMILIES = ("llada", "dream", "masked_lm", "bidirectional", "sdar", "llada2", "mdlm", "fast_dllm_v2")
PADDED = ("llada", "dream", "bidirectional", "sdar", "llada2")
ORDERS = ("low_confidence", "random", "margin", "entropy", "threshold", "factor", "entropy_bound", "dream")


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("family", PADDED)
def test_a_rows_answer_does_not_depend_on_its_batch(family: str, order: str) -> None:
    denoiser = denoiser_of(family)
    ids, mask = left_padded(prompt_of(3, 7), [0, 2, 5])
    options: dict[str, Any] = {"order": order, "temperature": 0.8, "guidance": lg.CFG(1.5), "steps": None}

    def seeds(*numbers: int) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(number) for number in numbers]

    together = generate(denoiser, ids, attention_mask=mask, generator=seeds(5, 6, 7), **options)
    for row, gap in enumerate([0, 2, 5]):
        alone = generate(denoiser, ids[row : row + 1, gap:], generator=seeds(5 + row), **options)
        assert together.sequences[row, gap:].tolist() == alone.sequences[0].tolist()
        assert together.commit_step[row].equal(alone.commit_step[0])
        assert together.nfe[row] == alone.nfe[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_fills_its_canvas(family: str) -> None:
    output = generate(denoiser_of(family), steps=None, temperature=1.0)
    answer = output.sequences[:, -ANSWER:]
    assert (answer != MASK).all(), "the mask token is never committed"
    assert output.sequences[:, :-ANSWER].equal(prompt_of())
    assert (output.commit_step >= 0).all()
    assert ((output.confidences > 0) & (output.confidences <= 1)).all()


def test_blocks_of_a_block_causal_model_count_from_the_first_token() -> None:
    denoiser = denoiser_of("sdar")
    block = denoiser.family.block_length
    assert block == 4
    ids, mask = left_padded(prompt_of(2, 6), [0, 3])
    steps = generate(denoiser, ids, attention_mask=mask, steps=None, order="fixed:direction=left_to_right").commit_step
    windows = [[0, 0, 1, 1, 1, 1, 2, 2], [0, 1, 1, 1, 1, 2, 2, 2]]  # two, or one, are left of the prompt's last block
    for row, numbers in enumerate(windows):
        order = [number for _, number in sorted(zip(steps[row].tolist(), numbers, strict=True))]
        assert order == sorted(order)


def test_only_the_prompts_block_sees_its_masks() -> None:
    """A committed block is not changed by what is decoded after it: the answer of a longer call begins alike."""
    denoiser = denoiser_of("sdar")
    long = generate(denoiser, max_new_tokens=11, steps=None).sequences
    assert long[:, : 5 + 7].equal(generate(denoiser, max_new_tokens=7, steps=None).sequences)


@pytest.mark.parametrize("guidance", [None, lg.CFG(2.0), lg.CFG(2.0, negative_prompt=(9, 10, 11))])
@pytest.mark.parametrize("family", ["sdar", "llada2"])
def test_a_prefix_cache_is_exact_with_block_causal_attention(family: str, guidance: Any) -> None:
    denoiser = denoiser_of(family)
    ids, mask = left_padded(prompt_of(2, 6), [0, 3])
    options: dict[str, Any] = {"attention_mask": mask, "steps": None, "guidance": guidance, "max_new_tokens": 13}
    plain, cached = (generate(denoiser, ids, cache=cache, **options) for cache in (None, "prefix"))
    assert cached.sequences.equal(plain.sequences)
    assert cached.commit_step.equal(plain.commit_step)


@pytest.mark.parametrize("kind", ["prefix", "dual"])
@pytest.mark.parametrize("family", ["dream", "bidirectional"])
def test_a_cache_of_full_attention_is_exact_at_the_first_step_of_a_block(family: str, kind: str) -> None:
    denoiser = denoiser_of(family)
    options: dict[str, Any] = {"block_length": 4, "steps": 2, "guidance": lg.CFG(2.0)}
    assert generate(denoiser, cache=kind, **options).sequences.equal(generate(denoiser, **options).sequences)


def test_infilling_writes_the_masks_and_nothing_else() -> None:
    denoiser = denoiser_of("llada")
    canvas = prompt_of(2, 12)
    canvas[0, [2, 3, 7]] = MASK
    canvas[1, [0, 10, 11]] = MASK
    output = generate(denoiser, canvas, infill=True, steps=3, guidance=lg.CFG(2.0))
    assert (output.sequences != canvas).equal(canvas == MASK)
    given = canvas != MASK
    assert (output.commit_step == -1).equal(given)
    mask_all = canvas.masked_fill(given, MASK)
    cond, uncond = denoiser(canvas).log_softmax(-1), denoiser(mask_all).log_softmax(-1)
    law = uncond + 2 * (cond - uncond)
    law[..., MASK] = -torch.inf
    first = output.commit_step == 0
    assert output.sequences[first].equal(law.argmax(-1)[first])
    with pytest.raises(ValueError, match="no prompt to replace"):
        generate(denoiser, canvas, infill=True, guidance=lg.CFG(2.0, negative_prompt=(5, 6)))


def test_a_row_is_done_at_its_end() -> None:
    denoiser = denoiser_of("llada")
    ids = prompt_of()
    free = generate(denoiser, ids, order="fixed:direction=left_to_right", steps=ANSWER)
    end = int(free.sequences[0, 5 + 2])
    place = free.sequences[0, 5:].tolist().index(end)
    output = generate(
        denoiser, ids, order="fixed:direction=left_to_right", steps=ANSWER, eos_token_id=end, pad_token_id=0
    )
    assert output.sequences[0, : 5 + place + 1].equal(free.sequences[0, : 5 + place + 1])
    assert not output.sequences[0, 5 + place + 1 :].any()
    assert output.commit_step[0, place + 1 :].tolist() == [-1] * (ANSWER - place - 1)
    assert output.nfe[0] == place + 1
    if end not in free.sequences[1, 5:]:
        assert output.sequences[1].equal(free.sequences[1])
        assert output.nfe[1] == ANSWER


def test_an_end_with_gaps_before_it_does_not_stop() -> None:
    denoiser = denoiser_of("llada")
    free = generate(denoiser, order="fixed:direction=right_to_left", steps=ANSWER)
    end = int(free.sequences[0, -1])
    output = generate(denoiser, order="fixed:direction=right_to_left", steps=ANSWER, eos_token_id=end, pad_token_id=0)
    first = free.sequences[0, 5:].tolist().index(end)
    assert output.sequences[0, : 5 + first + 1].equal(free.sequences[0, : 5 + first + 1])


def test_history_begins_with_the_masks_and_ends_with_the_answer() -> None:
    output = generate(output_history=True)
    assert len(output.history) == 5
    assert (output.history[0][:, 5:] == MASK).all()
    assert output.history[-1].equal(output.sequences)
    for step, (before, after) in enumerate(zip(output.history, output.history[1:], strict=False)):
        assert (before != after)[:, 5:].equal(output.commit_step == step)
    assert generate().history is None


class Streamer:
    def __init__(self) -> None:
        self.put_: list[list[int]] = []
        self.ended = False

    def put(self, tokens: torch.Tensor) -> None:
        self.put_.append(tokens.flatten().tolist())

    def end(self) -> None:
        self.ended = True


def test_a_streamer_gets_the_prompt_and_then_tokens_that_stand() -> None:
    streamer = Streamer()
    output = generate(ids=prompt_of(1), streamer=streamer, block_length=2, steps=8)
    assert streamer.put_[0] == output.sequences[0, :5].tolist()
    assert sum(streamer.put_, []) == output.sequences[0].tolist()
    assert len(streamer.put_) >= 4 + 1, "not all at the end"
    assert streamer.ended


def test_suppressed_and_deferred_tokens() -> None:
    free = generate(steps=ANSWER).sequences[:, 5:]
    common = int(free.flatten().mode().values)
    assert not (generate(steps=ANSWER, suppress_tokens=[common]).sequences[:, 5:] == common).any()
    output = generate(steps=ANSWER, defer_tokens=[common])
    for row in range(2):
        late = output.commit_step[row][output.sequences[row, 5:] == common]
        early = output.commit_step[row][output.sequences[row, 5:] != common]
        # at the step at which one was committed nothing else was left to commit but such
        assert not len(late) or not len(early) or late.min() > 0


def test_a_constraint_holds_after_guidance() -> None:
    def even(canvas: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        allowed = torch.arange(VOCAB) % 2 == columns[:, None] % 2
        assert canvas.shape == (2, 13) and rows.shape == columns.shape
        return allowed

    answer = generate(constraint=even, guidance=lg.CFG(3.0), temperature=1.5).sequences[:, 5:]
    assert (answer % 2 == torch.arange(5, 13) % 2).all()
    with pytest.raises(ValueError, match="^constraint: expected a token that may be written"):
        generate(constraint=lambda canvas, rows, columns: torch.zeros(len(rows), VOCAB, dtype=torch.bool))


def test_temperature_draws_from_the_guided_law() -> None:
    """One token, many rows: the frequencies are those of the guided, tempered law."""
    denoiser, rows = denoiser_of("llada"), 3000
    ids = prompt_of(1).repeat(rows, 1)
    output = generate(
        denoiser, ids, max_new_tokens=1, steps=1, temperature=2.0, guidance=lg.CFG(2.0), generator=torch.Generator()
    )
    canvas = torch.cat([ids[:1], torch.tensor([[MASK]])], 1)
    cond, uncond = (denoiser(c)[0, -1].log_softmax(-1) for c in (canvas, torch.full_like(canvas, MASK)))
    law = (uncond + 2 * (cond - uncond)) / 2
    law[MASK] = -torch.inf
    law = law.softmax(-1)
    counts = output.sequences[:, -1].bincount(minlength=VOCAB)
    deviation = (counts - rows * law)[law > 0] / (rows * law * (1 - law))[law > 0].sqrt()
    assert deviation.square().mean() < 1.6, "chi square per degree of freedom, 47 of them"


@pytest.mark.parametrize("corrector", ["remdm_cap:eta=0.4", "remdm_rescale:eta=0.5", "remdm_conf", "remdm_loop"])
def test_remasking_rewrites_and_still_ends_full(corrector: str) -> None:
    generator = torch.Generator().manual_seed(3)
    output = generate(corrector=corrector, steps=16, temperature=1.0, output_history=True, generator=generator)
    assert (output.sequences != MASK).all()
    opened = [
        bool(((before != MASK) & (after == MASK)).any())
        for before, after in zip(output.history, output.history[1:], strict=False)
    ]
    assert any(opened)


def test_token_editing_is_for_models_that_were_trained_for_it() -> None:
    with pytest.raises(ValueError, match="^corrector: TokenEditing rewrites tokens"):
        generate(corrector="token_editing")


def test_prophet_commits_a_sure_row_at_once() -> None:
    output = generate(early_commit="prophet:thresholds=[0.0,0.0,0.0]", steps=ANSWER)
    assert output.nfe.tolist() == [1, 1]
    assert generate(early_commit="prophet:thresholds=[1e6,1e6,1e6]", steps=ANSWER).nfe.tolist() == [ANSWER] * 2


def test_uniform_noise_is_drawn_anew_until_it_is_committed() -> None:
    denoiser = denoiser_of("udlm")
    assert denoiser.mask_token_id is None
    output = generate(denoiser, steps=4, temperature=1.0, output_history=True)
    assert (output.commit_step >= 0).all()
    for step, canvas in enumerate(output.history[1:-1]):
        stands = output.commit_step <= step
        assert canvas[:, 5:][stands].equal(output.sequences[:, 5:][stands])
    assert len({tuple(canvas[0].tolist()) for canvas in output.history}) == 5


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no ids": ({"ids": [[1, 2]]}, "^input_ids: expected integer ids"),
    "empty": ({"ids": torch.zeros(1, 0, dtype=torch.long)}, "^input_ids: expected at least one token"),
    "vocabulary": ({"ids": torch.tensor([[VOCAB]])}, "^input_ids: expected ids in"),
    "masks": ({"ids": torch.tensor([[5, MASK]])}, "^input_ids: the prompt holds mask tokens .* infill=True"),
    "no masks": ({"infill": True}, "^input_ids: expected mask tokens to fill in"),
    "steps": ({"block_length": 4, "steps": 3}, "^steps: expected a multiple of the 2 blocks, got 3"),
    "blocks": ({"block_length": 3}, "^block_length: expected a divisor"),
    "context": ({"max_new_tokens": 10_000, "steps": None}, "^max_new_tokens: prompt and answer have"),
    "zero": ({"max_new_tokens": 0}, "^max_new_tokens"),
    "temperature": ({"temperature": -1.0}, "^temperature"),
    "nan": ({"temperature": float("nan")}, "^temperature"),
    "top_p": ({"top_p": 1.5}, "^top_p"),
    "order": ({"order": "low_confidenc"}, "Did you mean 'low_confidence'"),
    "cache": ({"cache": "prefix"}, "^cache: expected a family whose forward takes keys"),
    "kind": ({"cache": "prefx"}, "^cache: expected 'prefix', 'dual' or None"),
    "a-cfg cache": ({"cache": "dual", "guidance": lg.AdaptiveCFG(2.0)}, "^cache: AdaptiveCFG"),
    "suffix": ({"guidance": lg.SuffixCFG(2.0, (5,))}, "^Suffix: "),
    "layers": ({"guidance": lg.DoLa()}, "^EarlyLayers: "),
    "scales": ({"guidance": lg.CFG((1.5, 2.0, 2.5))}, "^guidance_scale: expected one number or one per prompt"),
    "mask": ({"attention_mask": torch.ones(1, 5)}, "^attention_mask: expected a tensor of shape"),
    "right padding": ({"attention_mask": torch.tensor([[1] * 5, [1] * 4 + [0]])}, "^attention_mask: .*on the left"),
    "generators": ({"generator": [torch.Generator()]}, "^generator: expected one generator per row"),
    "streamer": ({"streamer": Streamer()}, "^streamer: expected one row"),
    "eos": ({"eos_token_id": VOCAB}, "^eos_token_id: expected token ids in"),
    "text": ({"guidance": lg.CFG(2.0, "A sad story.")}, "^negative_prompt: a text needs a tokenizer"),
    "negative": ({"negative_prompt": (5, 6)}, "^negative_prompt: none of the methods"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    options, message = REFUSED[case]
    with pytest.raises((ValueError, TypeError), match=message):
        generate(**options)
