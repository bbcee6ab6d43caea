"""`lmguide-diffusion`: masked-diffusion models in lm-eval, guided."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from tqdm import tqdm

from lmguide.bundled import bundled
from lmguide.checks import check_whole
from lmguide.contexts import Context, NegativePrompt
from lmguide.denoisers.binding import denoiser_of
from lmguide.denoisers.loading import load
from lmguide.diffusion import generate, loglikelihood
from lmguide.eval.harness.base import (
    GuidedLM,
    bar_off,
    check_arguments,
    model_path,
    over_processes,
    seeded,
)
from lmguide.eval.harness.settings import Setting, read_setting, with_source
from lmguide.sources.ids import pack

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lm_eval.api.instance import Instance

    from lmguide.denoisers import Denoiser

MAX_GEN_TOKS = 256
"""Length of an answer where neither task nor user says one, as in lm-eval's `hf`."""
DECODING = {"steps", "block_length", "order", "corrector", "early_commit", "temperature", "top_p", "top_k", "cache"}
"""Arguments of `lmguide.diffusion.generate` that a task or `--gen_kwargs` may set."""


class GuidedDiffusionLM(GuidedLM):
    """A masked-diffusion model in lm-eval: Monte-Carlo likelihood, multiple choice and generation under guidance.

    Scores are those of `lmguide.diffusion.loglikelihood`: unguided a lower bound, guided a number to rank by. Choices
    of one length share their masks. Greedy decoding is only tried with `greedy=true`; without, no answer counts as
    greedy, and `acc` of a task such as LAMBADA is 0.

    Args:
        pretrained: A folder, a name on the hub, or `slots` and `sudoku`, the bundled models; or a `Denoiser`.
        guidance: See `read_setting`, for the next four too.
        normalize: Only true: the laws of a canvas are normalised before they are averaged.
        source: The contrast. The default of `CFG` is the prompt masked, as in LLaDA.
        negative_prompt: A text or messages to contrast with.
        sources: The contrast of each task.
        mc_num: Masks for each answer, 128 as in LLaDA's evaluation.
        antithetic: Whether masks come in pairs of complements.
        greedy: Whether to find out if greedy decoding would write an answer: up to as many passes as it has tokens.
        max_length: Tokens of prompt and answer; by default the model's own limit. Prompts are cut on the left.
        batch_size: Canvases in a forward pass.
        device: By default a GPU if there is one.
        dtype: Of the weights; by default the checkpoint's.
        trust_remote_code: Whether code that the checkpoint brings may be run.
        max_batch_size: What lm-eval hands on and nothing reads here.
        **kwargs: Defaults of `DECODING`, such as `steps` and `block_length`; what a task says comes first. Everything
            else goes to `lmguide.denoisers.load`.

    Raises:
        ValueError: An argument is wrong; it is named.
    """

    backend = "causal"

    def __init__(
        self,
        pretrained: Any,
        guidance: Any = None,
        normalize: Any = True,
        source: Any = None,
        negative_prompt: Any = None,
        sources: Any = None,
        mc_num: int = 128,
        antithetic: bool = False,
        greedy: bool = False,
        max_length: int | None = None,
        batch_size: int | str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        trust_remote_code: bool = False,
        max_batch_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        setting = read_setting(guidance, normalize, source, negative_prompt, sources)
        check_arguments(kwargs, setting)
        check_whole("mc_num", mc_num, "LLaDA uses 128.", least=1)
        size = 1 if batch_size is None else batch_size
        if not str(size).isdigit() or not int(size):
            raise ValueError(f"batch_size: expected a number of canvases, got {batch_size!r}. Try 32.")
        super().__init__()
        self.decoding = {name: kwargs.pop(name) for name in DECODING & set(kwargs)}
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.denoiser = _denoiser(pretrained, device, dtype, trust_remote_code, kwargs)
        self.tokenizer = self.denoiser.tokenizer
        self._device = self.denoiser.device
        self.pretrained, self.mc_num, self.antithetic, self.greedy = pretrained, mc_num, antithetic, greedy
        self.batch_size = int(size)
        self.max_length = max_length or self.denoiser.max_length or 4096
        self._contexts: list[str] = []
        self.begin(setting)

    @classmethod
    def spends_more(cls, kinds: set[str]) -> bool:
        """Always: denoising takes more steps, and a score more masks."""
        return True

    def check(self, setting: Setting) -> None:
        """Refuse raw sums."""
        if setting.enabled and not setting.normalize:
            raise ValueError(
                "normalize: expected true, got false: a canvas has no raw sum that anybody uses. Leave it out."
            )

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text, or else the one that fills up."""
        end = self.tokenizer.eos_token_id
        return int(self.tokenizer.pad_token_id if end is None else end)

    @property
    def prefix_token_id(self) -> int:
        """What stands for an empty context."""
        start = self.tokenizer.bos_token_id
        return self.eot_token_id if start is None else int(start)

    @property
    def tokenizer_name(self) -> str:
        """The tokenizer's name, for lm-eval's caches of requests."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """The tokens of a text; a template brings its special tokens itself.

        Raises:
            ValueError: There are none for some word of it, as with the bundled models.
        """
        special = string not in self._conversations if add_special_tokens is None else add_special_tokens
        try:
            return list(self.tokenizer(string, add_special_tokens=special)["input_ids"])
        except Exception as error:
            if type(error) is not Exception:  # what the library of tokenizers raises has no type of its own
                raise
            raise ValueError(
                f"pretrained: the model has no tokens for a text of the task ({error}). The bundled models of canvases "
                "read slots_mc, slots_gen and sudoku_cells alone. Choose one of these, or another model."
            ) from None

    def render(self, chat_history: list[dict[str, str]], add_generation_prompt: bool) -> str:
        """A conversation as text, by the tokenizer's template."""
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    def speaks(self, source: Context) -> bool:
        """As in the other models; but the default contrast of a canvas is the prompt masked, template and all."""
        return super().speaks(source) and source != NegativePrompt(None)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Refused: a masked-diffusion model gives a bound of an answer, not the perplexity of a text.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            "loglikelihood_rolling: a masked-diffusion model bounds the likelihood of an answer and has no perplexity "
            "over windows. Leave the task out."
        )

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        methods = self.setting.methods(self._task)
        alike: dict[Any, list[int]] = {}
        for place, (strings, _context, target) in enumerate(requests):
            negative = self.negative_ids(strings[0], methods, stripped=True)
            alike.setdefault((len(target), None if negative is None else tuple(negative)), []).append(place)
        batches = []
        for (_length, negative), places in alike.items():
            places.sort(key=lambda place: len(requests[place][1]))
            batches += [(negative, places[at : at + self.batch_size]) for at in range(0, len(places), self.batch_size)]
        bar = tqdm(total=len(requests), disable=bar_off(disable_tqdm), desc="loglikelihood")

        def run(batch: tuple[tuple[int, ...] | None, list[int]]) -> tuple[list[tuple[float, bool]], int]:
            negative, places = batch
            found = loglikelihood(
                self.denoiser,
                [requests[place][1][-(self.max_length - len(requests[place][2])) :] for place in places],
                [requests[place][2] for place in places],
                guidance=(methods if negative is None else with_source(methods, negative)) or None,
                samples=self.mc_num * self.setting.passes,
                antithetic=self.antithetic,
                greedy=self.greedy,
                batch_size=self.batch_size,
                seed=torch.initial_seed() % 2**31,
                tokenizer=self.tokenizer,
            )
            bar.update(len(places))
            written = [False] * len(places) if found.greedy is None else found.greedy.tolist()
            return list(zip(found.score.tolist(), written, strict=True)), int(found.nfe.sum())

        answers: list[Any] = [None] * len(requests)
        for (_negative, places), (found, passes) in zip(batches, over_processes(batches, run), strict=True):
            self.spent.passes += passes
            self.spent.units += sum(min(self.mc_num, 2 ** len(requests[place][2]) - 1) for place in places)
            for place, answer in zip(places, found, strict=True):
                answers[place] = answer
                self.cache_hook.add_partial("loglikelihood", requests[place][0], answer)
        bar.close()
        return answers

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The answers. Each has noise of its own, so no batch changes another's."""
        batches: list[tuple[str | None, list[int]]] = []
        for task, places in self.by_task(requests):
            kinds: dict[str, list[int]] = {}
            for place in places:
                kinds.setdefault(repr(sorted(requests[place].args[1].items(), key=str)), []).append(place)
            for alike in kinds.values():
                alike.sort(key=lambda place: -len(self.tok_encode(requests[place].args[0])))
                batches += [(task, alike[at : at + self.batch_size]) for at in range(0, len(alike), self.batch_size)]
        base = torch.initial_seed()
        bar = tqdm(total=len(requests), disable=bar_off(disable_tqdm), desc="generate_until")

        def run(batch: tuple[str | None, list[int]]) -> tuple[list[str], int, int]:
            self._task, places = batch
            texts, passes, steps = self._written([requests[place].args for place in places], base, places)
            bar.update(len(places))
            return texts, passes, steps

        answers = [""] * len(requests)
        for (_, places), (texts, passes, steps) in zip(batches, over_processes(batches, run), strict=True):
            self.spent.passes += passes
            self.spent.units += steps
            for place, text in zip(places, texts, strict=True):
                answers[place] = text
                self.cache_hook.add_partial("generate_until", requests[place].args, text)
        bar.close()
        return answers

    def _written(self, batch: Sequence[Any], base: int, places: Sequence[int]) -> tuple[list[str], int, int]:
        """The texts of one batch, the evaluations of all its rows, and the steps of the control."""
        kwargs = normalize_gen_kwargs(batch[0][1], MAX_GEN_TOKS)
        stops = handle_stop_sequences(kwargs.pop("until", None), eos=None)
        length = int(kwargs.pop("max_gen_toks"))
        options = {**self.decoding, **_decoding(kwargs)}
        steps = int(options.pop("steps", None) or length)
        methods = self.setting.methods(self._task)
        prompts = [self.tok_encode(text)[-(self.max_length - length) :] for text, _ in batch]
        rows = pack(prompts, self.denoiser.device)
        negative = [self.negative_ids(text, methods) for text, _ in batch]
        spoken = all(ids is not None for ids in negative)
        output = generate(
            self.denoiser,
            rows.ids,
            rows.mask,
            guidance=(with_source(methods, tuple(tuple(ids or ()) for ids in negative)) if spoken else methods) or None,
            steps=steps * self.setting.passes,
            max_new_tokens=length,
            generator=[torch.Generator().manual_seed(seeded(base, place)) for place in places],
            tokenizer=self.tokenizer,
            **options,
        )
        texts = [self._text(row[rows.ids.shape[1] :].tolist(), stops) for row in output.sequences]
        return texts, int(output.nfe.sum()), steps * len(batch)

    def _text(self, ids: list[int], stops: list[str]) -> str:
        text = str(self.tokenizer.decode(ids, skip_special_tokens=True))
        return str(postprocess_generated_text(text, stop=stops, think_end_token=None))

    def get_model_info(self) -> dict[str, Any]:
        """Beside the setting, what the Monte-Carlo scores and the decoding depend on."""
        told = {"mc_num": self.mc_num, "antithetic": self.antithetic, "greedy": self.greedy, "decoding": self.decoding}
        return {**super().get_model_info(), **told, "model_dtype": str(self.denoiser.dtype)}


def _denoiser(pretrained: Any, device: str, dtype: str | None, trust: bool, kwargs: dict[str, Any]) -> Denoiser:
    path, own = model_path(pretrained)
    if own:
        if kwargs:
            raise ValueError(f"{next(iter(kwargs))}: a bundled model takes no such argument. Leave it out.")
        model, tokenizer = bundled(_name(path), dtype=getattr(torch, dtype) if dtype else torch.float32)
        return denoiser_of(model.to(device), tokenizer)  # type: ignore[arg-type]
    if not isinstance(pretrained, str):
        return denoiser_of(pretrained)
    return load(pretrained, trust_remote_code=trust, dtype=dtype, device=device, **kwargs)


def _name(path: str | Path) -> str:
    return str(path).rsplit("/", 1)[-1]


def _decoding(kwargs: dict[str, Any]) -> dict[str, Any]:
    """What a task asks of decoding, in the words of `lmguide.diffusion.generate`."""
    sample = kwargs.pop("do_sample", None)
    unknown = sorted(set(kwargs) - DECODING)
    if unknown:
        raise ValueError(
            f"gen_kwargs: expected {', '.join(sorted(DECODING))}, until or max_gen_toks, got {unknown[0]!r}. Leave it "
            "out."
        )
    if sample is False:
        kwargs["temperature"] = 0.0
    elif sample:
        kwargs.setdefault("temperature", 1.0)
    return kwargs
