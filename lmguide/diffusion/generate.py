"""`generate`: guided decoding of masked- and uniform-diffusion language models, in Hugging Face's words."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any, Literal

import torch

from lmguide import contexts
from lmguide.checks import check_whole
from lmguide.denoisers.binding import denoiser_of
from lmguide.denoisers.guide import Guide
from lmguide.diffusion.constraints import bound_spans, checked_function, spans_of
from lmguide.diffusion.correctors import Corrector, as_corrector
from lmguide.diffusion.decisions import Sampler
from lmguide.diffusion.early_commit import EarlyCommit, as_early_commit
from lmguide.diffusion.loop import Loop
from lmguide.diffusion.noise import RowNoise, keys_from
from lmguide.diffusion.orders import Order, as_order
from lmguide.diffusion.request import (
    check_lengths,
    check_tokens,
    lay_out,
    lay_out_template,
    methods_and_constraint,
    most_blocks,
    own_tokens,
    token_list,
)
from lmguide.diffusion.sampling import check_sampling
from lmguide.diffusion.template_layout import check_template, fitted, layout_of, null_vocabulary, surety
from lmguide.diffusion.verified import Verification, Verifier
from lmguide.diffusion.windows import windows
from lmguide.sources.binding import given_negative

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from torch import Tensor

    from lmguide.constraints import Constraint
    from lmguide.denoisers import Denoiser
    from lmguide.diffusion.constraints import Allowed
    from lmguide.diffusion.output import DiffusionOutput
    from lmguide.diffusion.spans import Span
    from lmguide.diffusion.templates import Template
    from lmguide.guidance import Guidance


@torch.no_grad()
def generate(
    model: Any,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    guidance: Guidance | Constraint | Sequence[Guidance | Constraint | str] | str | None = None,
    negative_prompt: Any = None,
    negative_prompt_ids: Tensor | None = None,
    negative_prompt_attention_mask: Tensor | None = None,
    constraint: Constraint | Sequence[Constraint | None] | Sequence[Span] | Allowed | str | None = None,
    template: Template | None = None,
    order: Order | str = "low_confidence",
    corrector: Corrector | str | None = None,
    early_commit: EarlyCommit | str | None = None,
    steps: int | None = None,
    max_new_tokens: int | None = None,
    block_length: int | None = None,
    temperature: float = 0.0,
    top_p: float | None = None,
    top_k: int | None = None,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    infill: bool = False,
    eos_token_id: int | Collection[int] | Tensor | None = None,
    pad_token_id: int | None = None,
    suppress_tokens: Collection[int] | Tensor | None = None,
    defer_tokens: Collection[int] | Tensor | None = None,
    cache: Literal["prefix", "dual"] | None = None,
    residual_interval: int = 1,
    tokenizer: Any = None,
    streamer: Any = None,
    progress: bool = False,
    output_history: bool = False,
) -> DiffusionOutput:
    """Fill the canvas behind some prompts, or the masks of given canvases.

    The canvas is the prompt and `max_new_tokens` mask tokens. At each denoising step the guided law of every undecided
    position of the current block is worked out, a token drawn from it, and the `order` picks the positions that are
    committed. At temperature 0, with `order="low_confidence"`, this is LLaDA's own loop (2502.09992), token for token.

    Args:
        model: A `Denoiser`, from `load`, or a model whose family is recognised from its configuration.
        input_ids: Prompts, `[B, P]`, left-padded; with `infill` whole canvases with mask tokens.
        attention_mask: `[B, P]`, 1 on tokens; `None` is all ones.
        guidance: A method, several, or strings such as `"cfg:guidance_scale=2"`. On a canvas `CFG()` without a
            negative prompt contrasts with the prompt masked; see also `AdaptiveCFG`.
        negative_prompt: Text, chat messages or ids in the place of the method's own; one for all rows or one per row.
        negative_prompt_ids: The same as a tensor of ids.
        negative_prompt_attention_mask: Its mask.
        constraint: What the answer must be, up to its first end token: `Regex`, `JSONSchema`, `Choice` or what is
            composed of such; one for all rows or one per row. Every answer is one that is allowed, in any order and
            with any blocks, and its positions are drawn from their joint law given that. Applied after guidance; see
            docs/diffusion-constraints.md. With `infill` the text begins at a row's first mask, or lies in each `Span`
            of a list. Or a function of canvas `[B, L]`, rows `[n]` and columns `[n]` to the allowed tokens `[n, V]`,
            as booleans on the canvas' device, which sees positions one by one and promises nothing.
        template: Text that stands behind the prompt, with fields to be filled in, each under its own constraint; the
            result has their values in `filled`. Takes the place of `max_new_tokens`, `constraint` and ends.
        order: Which positions are committed: an `Order`, or its string form such as `"threshold:threshold=0.9"`.
        corrector: What opens committed positions again or rewrites them; `None` leaves them.
        early_commit: When a whole row is committed at once; `None` is never.
        steps: Denoising steps over the whole answer, a multiple of the number of blocks; `None` is one per token,
            or with `infill`, full attention and one block, one per mask token of the row with most.
        max_new_tokens: Length of the answer, 128 by default; with `infill` there is none.
        block_length: Columns of a block; blocks are decoded from left to right. `None` is the whole answer, or the
            block of a block-causal model.
        temperature: 0 takes the likeliest token. The guided law is divided by it, then top-k and top-p apply.
        top_p: Smallest set of tokens with this much probability, in (0, 1].
        top_k: So many likeliest tokens, at least 1; 0 or `None` is all.
        generator: Seed of the noise: one generator, or one per row, so that a row's answer does not depend on its
            batch. Each is read once. `None` is torch's default one.
        infill: Fill in the mask tokens of `input_ids`.
        eos_token_id: What ends an answer, one or several; `None` is the model's own, or the tokenizer's, and `()` is
            nothing. Behind the first end before which
            everything stands, the row is padded and done.
        pad_token_id: What is written behind an end; `None` is the model's own, or the end's token.
        suppress_tokens: Tokens that are never written.
        defer_tokens: Tokens that are committed only where nothing else is left to commit, such as the end of sequence
            of a model that likes to end at once.
        cache: `"prefix"` keeps keys and values of everything before the block, `"dual"` of everything outside it
            (Fast-dLLM, 2505.22618); made anew at each block. An approximation, except for block-causal models, with
            which `"prefix"` is exact.
        residual_interval: The difference of the conditional and each other source is worked out every so many steps
            and used again in between (dLLM-Cache, 2506.06295); 1 is at every step. An approximation.
        tokenizer: For prompts in text, and for ends and padding that the model does not know; by default the
            denoiser's own.
        streamer: A streamer of transformers; gets tokens once all before them stand. For one row.
        progress: Show a progress bar.
        output_history: Return the canvas before the first step and after each.

    Returns:
        Sequences, the step and confidence at which each token was written, evaluations per row, statistics.

    Raises:
        ValueError: Something asked for cannot be done exactly; the argument is named.

    Example:
        >>> import lmguide as lg
        >>> model, tokenizer = lg.bundled("sudoku")
        >>> denoiser = lg.diffusion.Denoiser(model, tokenizer=tokenizer)
        >>> puzzle = tokenizer("0034 0300 0400 0102:", return_tensors="pt").input_ids
        >>> output = lg.diffusion.generate(denoiser, puzzle, max_new_tokens=16, guidance=lg.CFG(1.5))
        >>> output.sequences.shape[1] - puzzle.shape[1]
        16
    """
    denoiser = _denoiser(model, tokenizer)
    methods, constraint = methods_and_constraint(guidance, constraint)
    negative = given_negative(methods, negative_prompt, negative_prompt_ids, negative_prompt_attention_mask)
    enabled = [method for method in methods if method.enabled]
    if max_new_tokens is not None:
        check_whole("max_new_tokens", max_new_tokens, "Give the length of the answer, 128 for example.", least=1)
        max_new_tokens = operator.index(max_new_tokens)
    check_whole("residual_interval", residual_interval, "Use 1 for a fresh one at every step.", least=1)
    order = as_order(order)
    corrector = None if corrector is None else as_corrector(corrector)
    if corrector is not None and corrector.needs_editable and not denoiser.family.editable:
        raise ValueError(
            f"corrector: {type(corrector).__name__} rewrites tokens, which {denoiser.family.name} was not trained for. "
            "Use a remasking corrector, or say Family(editable=True) for a model that was."
        )
    check_sampling(temperature, top_p, top_k)
    _check_cache(cache, denoiser, enabled)
    vocab_size, mask_token_id = denoiser.vocab_size, denoiser.mask_token_id
    suppressed = token_list("suppress_tokens", suppress_tokens, vocab_size)
    deferred = token_list("defer_tokens", defer_tokens, vocab_size)
    layout = None
    if template is not None:
        refused = {"constraint": constraint, "max_new_tokens": max_new_tokens, "infill": infill or None}
        check_template(template, refused | {"eos_token_id": eos_token_id, "pad_token_id": pad_token_id})

        def sure(tried: Template, name: str) -> float:
            """How sure the model is of what it would write into a field at once."""
            given = {"negative_prompt_ids": negative_prompt_ids, "suppress_tokens": suppress_tokens}
            given |= {"negative_prompt_attention_mask": negative_prompt_attention_mask}
            options = {"guidance": methods or None, "negative_prompt": negative_prompt, "tokenizer": tokenizer, **given}
            tried = tried.longest()
            output = generate(denoiser, input_ids, attention_mask, template=tried, steps=1, **options)
            return surety(output, layout_of(tried, null_vocabulary(tried, denoiser, tokenizer)), name)

        template = fitted(template, sure)
        layout = layout_of(template, null_vocabulary(template, denoiser, tokenizer))
        prompts = lay_out_template(denoiser, input_ids, attention_mask, layout.tokens)
        eos_token_id = ()
    else:
        new_tokens = max_new_tokens if max_new_tokens is not None or infill else 128
        prompts = lay_out(denoiser, input_ids, attention_mask, new_tokens, infill)
    canvas, first = prompts.canvas, prompts.prompt_length
    batch, length = canvas.ids.shape
    holes = int(canvas.undecided.sum(1).max()) if infill or layout is not None else None
    block_length, block_steps = check_lengths(denoiser, length, length - first, block_length, steps, holes)
    _check_streamer(streamer, batch, infill or layout is not None, corrector)
    device = canvas.ids.device
    noise = RowNoise(keys_from(generator, batch, device), (1 - canvas.attention_mask).sum(1))
    ends = token_list("eos_token_id", eos_token_id, vocab_size)
    padding = token_list("pad_token_id", pad_token_id, vocab_size)
    check_tokens(suppressed, ends, padding, mask_token_id, vocab_size)
    if eos_token_id is None:
        ends = own_tokens(denoiser, tokenizer, "eos_token_id", unfit=mask_token_id)
    if pad_token_id is None:
        padding = own_tokens(denoiser, tokenizer, "pad_token_id", unfit=mask_token_id)
    function = constraint if callable(constraint) else None
    spans = [] if function is not None else spans_of(constraint, canvas, first)
    if layout is not None:
        spans = layout.spans(batch, first)
    if spans and corrector is not None and corrector.looks_at_committed:
        raise ValueError(
            f"corrector: {type(corrector).__name__} rewrites tokens one by one, each given the others, and two such "
            "changes may break what is constrained. Use a remasking corrector, or leave the constraint out."
        )
    groups, texts = bound_spans(spans, canvas, denoiser, tokenizer, ends, padding or ends[:1], suppressed)
    _check_residual(residual_interval, methods, corrector)
    guide = Guide(
        denoiser,
        enabled,
        canvas,
        first,
        tokenizer=tokenizer,
        negative=negative,
        cache=cache,
        residual_interval=operator.index(residual_interval),
    )

    def tensor(tokens: list[int]) -> Tensor:
        return torch.tensor(tokens, dtype=torch.long, device=device)

    sampler = Sampler(
        float(temperature),
        None if top_p is None else float(top_p),
        None if top_k is None else operator.index(top_k),
        tensor(suppressed),
        mask_token_id,
        noise,
        None if function is None else checked_function(function, canvas, vocab_size),
    )
    plan = list(windows(canvas, first, block_length, denoiser.family))
    if any(method.is_reward for method in guide.methods) and not all(bool(window.mine.all()) for window in plan):
        raise ValueError(
            "guidance: a reward judges all columns of a block, and the prompts' lengths put the rows' blocks in "
            "different columns. Decode prompts together whose lengths agree modulo the model's block, or one at a time."
        )
    loop = Loop(
        guide=guide,
        order=order,
        sampler=sampler,
        noise=noise,
        windows=plan,
        steps=block_steps,
        blocks=most_blocks(denoiser, length, first, block_length),
        groups=groups,
        verifier=Verifier(texts, sampler, Verification()) if texts else None,
        corrector=corrector,
        early_commit=None if early_commit is None else as_early_commit(early_commit),
        deferred=tensor(deferred),
        ends=tensor(ends),
        padding=(padding or ends or [0])[0],
        streamer=streamer,
        progress=progress,
        keep_history=output_history,
    )
    output = loop.run()
    if layout is not None:
        output.filled = tuple(layout.read(row) for row in output.sequences[:, first:])
    return output


def _check_streamer(streamer: Any, batch: int, infill: bool, corrector: Any) -> None:
    if streamer is None:
        return
    if batch > 1:
        raise ValueError(f"streamer: expected one row, got {batch}. Stream one prompt at a time.")
    if infill or corrector is not None:
        what = "infill or a template" if infill else "a corrector"
        raise ValueError(
            f"streamer: a token that was streamed cannot change, and with {what} it might, or stands between others. "
            "Leave the streamer out and use output_history."
        )


def _check_residual(interval: int, methods: Sequence[Guidance], corrector: Corrector | None) -> None:
    if interval == 1:
        return
    if corrector is not None:
        raise ValueError(
            "residual_interval: a corrector opens positions for which there is no difference to use again. "
            "Leave one of the two out."
        )
    if any(method.enabled and method.when() is not None for method in methods):
        raise ValueError(
            "residual_interval: behind a gate the other source may not have been run, so there is no difference to use "
            "again. Leave the gate or the interval out."
        )


def _check_cache(cache: Any, denoiser: Denoiser, methods: Sequence[Guidance]) -> None:
    if cache not in {None, "prefix", "dual"}:
        raise ValueError(f"cache: expected 'prefix', 'dual' or None, got {cache!r}. Choose one of them.")
    if cache is None:
        return
    found = [(method, context) for method in methods for context in method.sources().values()]
    for method, context in found:
        if isinstance(context, contexts.RemaskedCanvas):
            raise ValueError(
                f"cache: {type(method).__name__} masks tokens all over the canvas anew at each step, so there are no "
                "keys and values to keep. Leave the cache out, or guide away from the masked prompt with CFG."
            )
    full = denoiser.family.attention == "full"
    if full and any(isinstance(context, contexts.SampledCanvases) for _, context in found):
        raise ValueError(
            "cache: RewardedSamples needs the law of every undecided position, and a cache leaves out those beside the "
            "block. Leave the cache out, or use ClassifierGuidance."
        )


def _denoiser(model: Any, tokenizer: Any) -> Denoiser:
    if getattr(getattr(model, "config", None), "model_type", None) == "diffusion_gemma":
        raise ValueError(
            "model: DiffusionGemma has a decoding loop of its own in transformers. "
            "Use lmguide.diffusion.guide_gemma(model, guidance).generate(...)."
        )
    return denoiser_of(model, tokenizer)
