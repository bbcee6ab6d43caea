"""The page of the playground, with Gradio. It serves this machine alone and loads nothing from elsewhere."""

from __future__ import annotations

import os
import time
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from lmguide.constraints import ConstraintError
from lmguide.playground.answers import Answers, answers
from lmguide.playground.settings import CONSTRAINTS, METHODS, NO_CONSTRAINT, Settings, takes_negative
from lmguide.playground.show import columns

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

EXTRA = 'gradio is not installed. Run: pip install "lmguide[playground]"'
HERE = "127.0.0.1"
BETWEEN = 0.05
"""Seconds between two pictures of the same answers: a browser draws no faster, and a small model is faster."""
PAUSE = 0.005
"""Seconds after each token. The server has a thread of its own, and a small model would not let it send anything."""
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'"
)
"""The browser asks nobody but this server, whatever Gradio's page names."""


def build(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, first: Settings) -> Any:
    """The page.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        name: What to call the model.
        first: What is set when the page opens.

    Returns:
        A `gradio.Blocks`.

    Raises:
        ImportError: Gradio is not installed.
    """
    gr = load_gradio()

    def stream(*values: Any) -> Iterator[tuple[str, str, str]]:
        try:
            settings = Settings(**_read(dict(zip(fields, values, strict=True))))
            shown, last = 0.0, Answers()
            for last in answers(model, tokenizer, settings):
                if last.stats is None and time.monotonic() - shown >= BETWEEN:
                    shown = time.monotonic()
                    yield columns(last, writing=True)
                time.sleep(PAUSE)
            yield columns(last, writing=False)
        except (ConstraintError, ImportError, TypeError, ValueError) as error:
            raise gr.Error(str(error), title="Not like this", print_exception=False) from error

    with gr.Blocks(title="lmguide playground", analytics_enabled=False) as page:
        gr.HTML(f"<h1>lmguide playground</h1><p>{_told(model, name)}</p>", elem_classes="lmg-head")
        fields: dict[str, Any] = {}
        with gr.Row():
            fields["prompt"] = gr.Textbox(first.prompt, label="Prompt", lines=2, scale=3, elem_id="lmg-prompt")
            fields["negative_prompt"] = gr.Textbox(
                first.negative_prompt,
                label="Negative prompt",
                info="empty: the method's own default",
                lines=1,
                scale=2,
                elem_id="lmg-negative",
            )
        with gr.Row():
            fields["method"] = gr.Dropdown(list(METHODS), value=first.method, label="Method", min_width=190)
            fields["guidance_scale"] = gr.Slider(
                -1, 10, first.guidance_scale, step=0.05, label="Guidance scale", info="1 is off", elem_id="lmg-scale"
            )
            fields["entropy_threshold"] = gr.Slider(
                0, 5, first.entropy_threshold, step=0.05, label="Entropy threshold", info="nats; 0 guides every token"
            )
        with gr.Accordion("Constraint, decoding", open=False):
            with gr.Row():
                fields["constraint_kind"] = gr.Radio(
                    [NO_CONSTRAINT, *CONSTRAINTS], value=first.constraint_kind, label="Constraint of the guided answer"
                )
                fields["constraint"] = gr.Textbox(
                    first.constraint, label="Its text", lines=3, scale=2, elem_id="lmg-constraint"
                )
            with gr.Row():
                fields["temperature"] = gr.Slider(
                    0, 2, first.temperature, step=0.05, label="Temperature", info="0 is greedy"
                )
                fields["max_new_tokens"] = gr.Slider(1, 1024, first.max_new_tokens, step=1, label="Tokens at most")
                fields["seed"] = gr.Number(first.seed, label="Seed", precision=0, minimum=0)
                fields["chat"] = gr.Checkbox(first.chat, label="Chat template", visible=bool(tokenizer.chat_template))
        with gr.Row():
            generate = gr.Button("Generate", variant="primary", elem_id="lmg-generate", scale=3)
            stop = gr.Button("Stop", elem_id="lmg-stop", scale=1)
        empty = columns(Answers(), writing=False)
        shown = []
        with gr.Row(equal_height=True):
            for text in empty[:2]:
                with gr.Column(variant="panel", elem_classes="lmg-column"):
                    shown.append(gr.HTML(text))
        shown.append(gr.HTML(empty[2]))
        fields["method"].change(_negative_box, fields["method"], fields["negative_prompt"], api_visibility="private")
        runs = gr.on(
            [generate.click, fields["prompt"].submit, fields["negative_prompt"].submit],
            stream,
            list(fields.values()),
            shown,
            show_progress="hidden",
            concurrency_limit=1,
            api_visibility="private",
        )
        stop.click(None, cancels=[runs], api_visibility="private")
    return page


def launch(page: Any, port: int | None, browser: bool = False) -> str:
    """Serve the page on this machine, in threads of its own.

    Args:
        page: Made by `build`.
        port: A free port; `None` finds one from 7860 on.
        browser: Whether to open it.

    Returns:
        Its address.

    Raises:
        OSError: The port is taken.
    """
    gr = load_gradio()
    from starlette.middleware import Middleware

    plain = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    _, address, _ = page.launch(
        server_name=HERE,
        server_port=port,
        inbrowser=browser,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        ssr_mode=False,
        enable_monitoring=False,
        footer_links=[],
        theme=gr.themes.Default(**plain),
        css=(files("lmguide") / "templates" / "playground.css").read_text(encoding="utf-8"),
        app_kwargs={"middleware": [Middleware(_Policy)]},
    )
    return str(address)


class _Policy:
    """Sends `POLICY` with every answer."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def sending(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", POLICY.encode())]
            await send(message)

        await self.app(scope, receive, sending)


def load_gradio() -> Any:
    """Gradio, with its reports to its makers switched off.

    Raises:
        ImportError: It is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when it is imported
    try:
        import gradio
    except ImportError as error:
        raise ImportError(EXTRA) from error
    return gradio


def _read(values: dict[str, Any]) -> dict[str, Any]:
    """The values of the page as settings have them: a box that is not shown is empty, whole numbers are whole."""
    if not takes_negative(values["method"]):
        values["negative_prompt"] = ""
    return values | {name: _whole(values[name]) for name in ("max_new_tokens", "seed")}


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _negative_box(method: str) -> Any:
    """The box of the negative prompt, where the method has one."""
    label = "Negative suffix" if method == "suffix_cfg" else "Negative prompt"
    return load_gradio().update(visible=takes_negative(method), label=label)


def _told(model: PreTrainedModel, name: str) -> str:
    from html import escape

    return f"<code>{escape(name)}</code>, {model.num_parameters():,} parameters, on {model.device}"
