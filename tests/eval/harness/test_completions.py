"""`lmguide-completions`: what goes over the wire, and servers that would overlook it."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
import torch
from lm_eval.api.instance import Instance

import lmguide as lg
from lmguide.bundled import MODELS
from lmguide.eval.harness.completions import PROBE, GuidedCompletions
from lmguide.eval.harness.settings import Setting
from lmguide.vllm.parameters import read
from tests.vllm.served import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

TEXTS = ("A tale of the sea:", "A tale of space:", "A tale:")


class Stub(ThreadingHTTPServer):
    """A server that writes `answer 7` and so on, the last token of the prompt, and remembers what it was asked."""

    def __init__(self, guides: bool) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.guides = guides
        self.asked: list[dict[str, Any]] = []
        self.busy = 0

    @property
    def answers(self) -> list[dict[str, Any]]:
        """The requests for answers, in the order of their prompts' lengths."""
        found = [body for body in self.asked if PROBE not in body.get("vllm_xargs", {})]
        return sorted(found, key=lambda body: -len(body["prompt"][0]))


class Handler(BaseHTTPRequestHandler):
    """Of a `Stub`."""

    server: Stub

    def do_POST(self) -> None:
        """Answer; a server that guides says what is wrong with the arguments of guidance."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(body)
        try:
            if self.server.guides:
                read(body.get("vllm_xargs"))
        except ValueError as error:
            self.reply(400, {"error": {"message": str(error)}})
            return
        if self.server.busy:
            self.server.busy -= 1
            self.reply(503, {})
            return
        choices = [{"index": 0, "text": f"answer {body['prompt'][0][-1]}"}]
        self.reply(200, {"choices": choices, "usage": {"completion_tokens": 5}})

    def reply(self, status: int, body: Any) -> None:
        """Send JSON."""
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on stderr."""


@pytest.fixture
def stub(request: pytest.FixtureRequest) -> Iterator[Stub]:
    server = Stub(getattr(request, "param", True))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join(10)


def client(stub: Stub, **options: Any) -> GuidedCompletions:
    """A model of lm-eval that asks the stub."""
    address = f"http://127.0.0.1:{stub.server_port}/v1/completions"
    given = {"model": "m", "tokenizer": str(MODELS / "tales"), "revision": None, "num_concurrent": 2, **options}
    return GuidedCompletions(address, **given)


def asked(texts: Sequence[str] = TEXTS, **options: Any) -> list[Instance]:
    """Requests of lm-eval for answers."""
    options = {"until": ["\n\n"], "max_gen_toks": 16, **options}
    return [
        Instance("generate_until", {}, (text, options), place, ("any", place, 1)) for place, text in enumerate(texts)
    ]


def test_guidance_goes_with_every_request(stub: Stub) -> None:
    lm = client(stub, guidance="cfg:guidance_scale=3")
    found = lm.generate_until(asked(), True)
    tokens = [lm.tokenizer(text).input_ids for text in TEXTS]  # with what the tokenizer puts in front
    assert found == [f"answer {ids[-1]}" for ids in tokens]
    assert [body["prompt"] for body in stub.answers] == sorted(
        ([ids] for ids in tokens), key=lambda each: -len(each[0])
    )
    for body in stub.answers:
        requested = read(body["vllm_xargs"])
        assert requested is not None
        assert requested.methods == (lg.CFG(3.0, lg.LastToken()),)
        assert (body["max_tokens"], body["temperature"], body["model"]) == (16, 0.0, "m")
        assert "\n\n" in body["stop"]
    assert (lm.spent.units, lm.spent.passes) == (15, 30)
    assert json.loads(json.dumps(lm.get_model_info()["guidance"]))["label"] == "cfg guidance_scale=3"


def test_unguided_requests_carry_nothing(stub: Stub) -> None:
    lm = client(stub)
    lm.use(Setting((lg.CFG(1.0, "A tale:"),)))
    lm.generate_until(asked(), True)
    assert len(stub.asked) == 3
    assert all("vllm_xargs" not in body for body in stub.asked)
    assert lm.spent.each == 1.0


def test_each_answer_has_a_seed_of_its_own(stub: Stub) -> None:
    lm = client(stub)
    seeds = []
    for seed in (0, 0, 1):
        stub.asked.clear()
        torch.manual_seed(seed)
        lm.generate_until(asked(TEXTS[:1] * 3, do_sample=True, temperature=0.7), True)
        seeds.append({body["seed"] for body in stub.answers})
        assert {body["temperature"] for body in stub.answers} == {0.7}
    assert seeds[0] == seeds[1] and seeds[0].isdisjoint(seeds[2])
    assert len(seeds[0]) == 3


def test_a_chat_is_contrasted_with_another_chat(stub: Stub) -> None:
    lm = client(stub, guidance="cfg:guidance_scale=2")
    lm.tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    texts = [lm.apply_chat_template([{"role": "user", "content": word}]) for word in ("Sea", "Forest, dark")]
    lm.generate_until(asked(texts), True)
    assert [body["vllm_xargs"]["negative_prompt_ids"] for body in stub.answers] == [lm.tok_encode("<user>")] * 2


@pytest.mark.parametrize("stub", [False], indirect=True)
def test_a_server_that_overlooks_guidance_is_refused(stub: Stub) -> None:
    lm = client(stub, guidance="cfg:guidance_scale=3")
    with pytest.raises(ValueError, match="overlooks guidance, and all answers would be unguided. Start it with"):
        lm.generate_until(asked(), True)
    assert stub.answers == []
    lm.use(Setting())
    assert len(lm.generate_until(asked(), True)) == 3


def test_what_the_server_refuses_is_told_and_asked_once(stub: Stub) -> None:
    lm = client(stub)
    with pytest.raises(ValueError, match="^The server refuses: negative_prompt: given without a strength"):
        lm.generate_until(asked(TEXTS[:1], vllm_xargs={"negative_prompt": "A tale:"}), True)
    assert len(stub.asked) == 1


def test_a_busy_server_is_asked_again(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda seconds: None)
    stub.busy = 2
    assert len(client(stub).generate_until(asked(TEXTS[:1]), True)) == 1
    assert len(stub.asked) == 3
    stub.busy = 3
    with pytest.raises(OSError, match="503"):
        client(stub).generate_until(asked(TEXTS[:1]), True)


def test_a_server_that_is_not_there_is_named(stub: Stub) -> None:
    lm = client(stub, max_retries=1)
    lm.base_url = f"http://127.0.0.1:{free_port()}/v1/completions"
    with pytest.raises(ConnectionError, match=r"^base_url: no server answers at http://127.0.0.1:\d+/"):
        lm.generate_until(asked(), True)


def test_an_answer_leaves_room_for_its_prompt(stub: Stub) -> None:
    lm = client(stub, max_length=20)
    lm.generate_until(asked(("A tale of the sea: " * 9,)), True)
    assert len(stub.asked[0]["prompt"][0]) == 3
    with pytest.raises(ValueError, match="^max_length: expected more than the 40 tokens of an answer, got 20"):
        lm.generate_until(asked(max_gen_toks=40), True)


def test_scores_are_refused_under_guidance(stub: Stub) -> None:
    lm = client(stub, guidance="cfg:guidance_scale=3")
    scored = [Instance("loglikelihood", {}, (TEXTS[0], " The crab"), 0, ("any", 0, 1))]
    with pytest.raises(ValueError, match="^guidance: a server's log-probabilities .* use --model lmguide-vllm"):
        lm.loglikelihood(scored, True)
    with pytest.raises(ValueError, match="^loglikelihood_rolling"):
        lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (TEXTS[0],), 0, ("any", 0, 1))], True)
    assert stub.asked == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"guidance": "dola"}, "guidance: dola "),
        ({"gamma": 2}, "gamma: expected inside guidance"),
        ({"tokenizer_backend": None}, "tokenizer_backend: expected huggingface"),
        ({"device": "cpu"}, "device: the server has chosen its own"),
    ],
)
def test_wrong_arguments_are_refused_before_asking(stub: Stub, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=f"^{words}"):
        client(stub, **arguments)
    with pytest.raises(ValueError, match="^base_url: expected the address of completions, got 'http://127.0.0.1'"):
        GuidedCompletions("http://127.0.0.1", model="m")
    assert stub.asked == []
