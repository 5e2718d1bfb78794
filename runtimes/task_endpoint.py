"""An OpenAI-compatible endpoint answering a task. What it says is checked: it was written by others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .task_http import Answer, Connection, EndpointError, RefusedError
from .task_scoring import Scores, Spent, Written

_LONGEST_TEXT = 1 << 16  # characters of an answer that are looked at


class NoScoresError(EndpointError):
    """The endpoint gives no log-likelihoods of prompts."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(f"{connection.address.base} gives no log-likelihoods of a prompt (echo with logprobs)")


@dataclass
class Endpoint:
    """A model behind an endpoint.

    chat   whether prompts are messages, or plain text whose answer ends with its line
    notes  what it did not take: a report must say so
    """

    connection: Connection
    model: str
    chat: bool
    notes: list[str] = field(default_factory=list)
    _limit_name: str = field(default="max_tokens", init=False)
    _temperature: bool = field(default=True, init=False)

    def score(self, context: str, continuations: Sequence[str]) -> Scores:
        """See Subject. One request: the context alone, which tells how many tokens it has, and each whole text.

        Raises NoScoresError if the answer has no log-likelihoods of the prompts, EndpointError if they are nonsense.
        """
        texts = [context, *(context + continuation for continuation in continuations)]
        body = {"model": self.model, "prompt": texts, "max_tokens": 1, "temperature": 0, "echo": True, "logprobs": 1}
        answer = self.connection.post("/completions", body)
        choices = _choices(answer, len(texts))
        if choices is None:
            raise NoScoresError(self.connection)
        rows = [self._prompt_logprobs(choice) for choice in choices]
        length = len(rows[0])
        if length < 1 or any(len(row) <= length for row in rows[1:]):
            raise NoScoresError(self.connection)
        sums = tuple(self._sum(row[length:]) for row in rows[1:])
        return Scores(sums, Spent(answer.seconds, sum(map(len, rows[1:])), 0, answer.retried))

    def _prompt_logprobs(self, choice: Mapping[str, Any]) -> list[Any]:
        """Of the prompt's tokens: the last one listed was generated."""
        logprobs = choice.get("logprobs")
        listed = logprobs.get("token_logprobs") if isinstance(logprobs, dict) else None
        if not isinstance(listed, list):
            raise NoScoresError(self.connection)
        return listed[:-1]

    def _sum(self, logprobs: Sequence[Any]) -> float:
        for logprob in logprobs:
            if isinstance(logprob, bool) or not isinstance(logprob, (int, float)) or not -1e6 < logprob < 1e-3:
                raise EndpointError(f"{self.connection.address.base} answers with log-probabilities that are none")
        return math.fsum(logprobs)

    def write(self, prompt: str, limit: int) -> Written:
        """See Subject. Raises EndpointError if the answer has no text."""
        if self.chat:
            asked: dict[str, Any] = {"messages": [{"role": "user", "content": prompt}]}
        else:
            asked = {"prompt": prompt, "stop": ["\n"]}
        answer = self._post("/chat/completions" if self.chat else "/completions", asked, limit)
        choices = _choices(answer, 1)
        if choices is None:
            raise EndpointError(f"{self.connection.address.base} does not answer with one choice")
        choice, message = choices[0], choices[0].get("message")
        text = message.get("content") if self.chat and isinstance(message, dict) else choice.get("text")
        if text is None and self.chat and isinstance(message, dict):
            text = ""  # all of it was thought, or refused
        if not isinstance(text, str):
            raise EndpointError(f"{self.connection.address.base} answers without a text")
        usage = answer.content.get("usage")
        usage = usage if isinstance(usage, dict) else {}
        read, new = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
        clean = self.connection.without_key(text[:_LONGEST_TEXT]).encode("utf-8", "replace").decode("utf-8")
        return Written(clean, Spent(answer.seconds, read, new, answer.retried))

    def _post(self, path: str, asked: Mapping[str, Any], limit: int) -> Answer:
        """Ask, again with other words where a model does not take a parameter (OpenAI's reasoning models)."""
        while True:
            body = {"model": self.model, **asked, self._limit_name: limit}
            if self._temperature:
                body["temperature"] = 0
            try:
                return self.connection.post(path, body)
            except RefusedError as error:
                if not self._adapt(str(error)):
                    raise

    def _adapt(self, refusal: str) -> bool:
        """Whether there is another way to say it."""
        if self._limit_name == "max_tokens" and self.chat and "max_tokens" in refusal:
            self._limit_name = "max_completion_tokens"
        elif self._temperature and "temperature" in refusal:
            self._temperature = False
            self.notes.append("the endpoint takes no temperature: its answers are drawn, not the likeliest")
        else:
            return False
        return True

    def scores_prompts(self) -> bool:
        """Whether the endpoint gives log-likelihoods. A refusal or another kind of answer is a no."""
        try:
            self.score("One two three", [" four"])
        except (NoScoresError, RefusedError):
            return False
        return True


def _choices(answer: Answer, count: int) -> list[dict[str, Any]] | None:
    """The choices of an answer in the order of the prompts; None unless there is one for each."""
    choices = answer.content.get("choices")
    if not isinstance(choices, list) or len(choices) != count or not all(isinstance(c, dict) for c in choices):
        return None
    places = [choice.get("index") for choice in choices]
    if all(type(place) is int for place in places) and sorted(places) == list(range(count)):
        choices = sorted(choices, key=lambda choice: int(choice["index"]))
    return choices


def _count(given: Any) -> int | None:
    whole = isinstance(given, int) and not isinstance(given, bool) and 0 <= given < 1 << 40
    return given if whole else None


def find_model(connection: Connection) -> str:
    """The only model that an endpoint lists; raises EndpointError if there is none or more than one."""
    try:
        listed = connection.get("/models").content.get("data")
    except RefusedError:
        listed = None
    names = [entry.get("id") for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
    known = [connection.clean(name) for name in names if isinstance(name, str) and name]
    if len(known) == 1:
        return known[0]
    some = f"it lists {', '.join(known[:5])}{' and more' if len(known) > 5 else ''}" if known else "it lists none"
    raise EndpointError(f"{connection.address.base}: name its model with --against-model; {some}")
