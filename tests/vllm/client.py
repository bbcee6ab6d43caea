"""A client of the server under test: plain HTTP, every call with an end."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tests.vllm.reference import Asked

SECONDS = 60


@dataclass(frozen=True)
class Client:
    """Asks one server.

    Attributes:
        address: Of the server, without a slash at its end.
    """

    address: str

    def post(self, path: str, **body: Any) -> tuple[int, Any]:
        """Status and answer of one request."""
        try:
            with self._open(path, body) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def complete(self, prompt: str | Sequence[int], guidance: Mapping[str, Any] | None = None, **options: Any) -> Any:
        """The choices of a completion, greedy unless told otherwise; each has its `token_ids`."""
        body = {"prompt": prompt, "temperature": 0, "max_tokens": 24, "return_token_ids": True} | options
        status, answer = self.post("/v1/completions", vllm_xargs=dict(guidance or {}), **body)
        assert status == 200, answer
        return answer["choices"]

    def tokens(
        self, prompt: str | Sequence[int], guidance: Mapping[str, Any] | None = None, **options: Any
    ) -> list[int]:
        """The tokens of a completion's first choice."""
        return list(self.complete(prompt, guidance, **options)[0]["token_ids"])

    def many(self, requests: Sequence[tuple[Any, Any, Mapping[str, Any]]]) -> list[list[int]]:
        """The tokens of requests sent all at once."""
        with ThreadPoolExecutor(len(requests)) as pool:
            return list(pool.map(lambda request: self.tokens(request[0], request[1], **request[2]), requests))

    def mistakes(self, crowd: Sequence[Asked]) -> list[Asked]:
        """Requests, sent all at once, that are not answered as they must be."""
        got = self.many([(asked.prompt, asked.sent, asked.options) for asked in crowd])
        return [asked for asked, tokens in zip(crowd, got, strict=True) if not asked.answer.agrees(tokens)]

    def stream(self, prompt: Sequence[int], guidance: Mapping[str, Any], **options: Any) -> Iterator[Any]:
        """The chunks of a streamed completion; leaving the loop closes the connection."""
        body = {
            "prompt": prompt,
            "temperature": 0,
            "max_tokens": 24,
            "return_token_ids": True,
            "stream": True,
        } | options
        with self._open("/v1/completions", body | {"vllm_xargs": dict(guidance)}) as response:
            for line in response:
                if line.startswith(b"data: {"):
                    yield json.loads(line[6:])["choices"][0]

    def metrics(self) -> dict[str, float]:
        """Counters and gauges by name, summed over their labels."""
        found: dict[str, float] = {}
        with urllib.request.urlopen(f"{self.address}/metrics", timeout=SECONDS) as response:
            for line in response.read().decode().splitlines():
                if not line.startswith("#"):
                    name, _, value = line.rpartition(" ")
                    name = name.partition("{")[0]
                    found[name] = found.get(name, 0) + float(value)
        return found

    def _open(self, path: str, body: Mapping[str, Any]) -> Any:
        data = json.dumps({"model": "m", **body}).encode()
        request = urllib.request.Request(self.address + path, data, {"Content-Type": "application/json"})
        return urllib.request.urlopen(request, timeout=SECONDS)
