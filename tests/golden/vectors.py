"""Token ids, chat prompts and draws: the expected values that make.py writes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from golden.texts import TEXTS
from numpy.typing import NDArray
from pocketlm.errors import InputError
from pocketlm.runtimes.chat_template import ChatTemplate, control_tokens, encode_chat
from pocketlm.runtimes.chat_turns import assemble, chat_turns, segments
from pocketlm.runtimes.sampling import Sampling, sample, uniforms
from pocketlm.runtimes.tokenizer import StreamDecoder, Tokenizer, control_pattern
from tiny_tokenizers import library
from transcripts import NAMES, TRANSCRIPTS, template_entry

NOW = datetime(2025, 1, 31)
_KINDS = ("byte level", "smollm2", "llama 3", "llama 2", "metaspace", "gemma")
_CHATS = {
    "smollm2": "SmolLM2",
    "llama 2": "Llama 2",
    "byte level": "Qwen 3",
    "metaspace": "Mistral",
    "llama 3": "ChatML",
}
_PROSE = Path(__file__).parents[2] / "runtimes" / "data" / "prose.txt"
_PROSE_CHARACTERS = 20_000  # of English, so that the small tokenizers have merges worth testing
_VOCABULARY = 600


def small_tokenizers() -> dict[str, str]:
    """Name -> content of tokenizer.json, trained on prose and on the corpus."""
    text = [_PROSE.read_text(encoding="utf-8")[:_PROSE_CHARACTERS], *TEXTS.values()]
    return {kind.replace(" ", "_"): _compact(library(kind, text, _VOCABULARY).to_str()) for kind in _KINDS}


def _compact(content: str) -> str:
    return json.dumps(json.loads(content), ensure_ascii=False, separators=(",", ":")) + "\n"


def awkward_ids(content: str) -> dict[str, Any]:
    """Cases for all texts, and streams of arbitrary tokens."""
    tokenizer = Tokenizer(content)
    return {
        "cases": [{"name": name} | _case(tokenizer, text) for name, text in TEXTS.items()],
        "streams": [_stream(tokenizer, tokens) for tokens in _token_rows(tokenizer)],
    }


def _case(tokenizer: Tokenizer, text: str) -> dict[str, Any]:
    """What make.py tells; parts that would repeat others are left out."""
    template = tokenizer.encode(text, special=True)
    try:
        user = tokenizer.encode(text, special=False)
    except InputError:
        return {"user": None, "template": template}
    decoded = tokenizer.decode(user)
    different = {"template": template} if template != user else {}
    return {"user": user} | different | ({"decoded": decoded} if decoded != text else {})


def _token_rows(tokenizer: Tokenizer) -> Iterator[list[int]]:
    """Tokens as a model with a fever writes them: whole texts, cut ones, and any in any order."""
    for name in ("emoji joined", "many marks", "special tokens"):
        tokens = tokenizer.encode(TEXTS[name], special=True)
        yield tokens
        yield tokens[1:-1]
    size = max(token for text in TEXTS.values() for token in tokenizer.encode(text, special=True)) + 1
    for seed in range(10):
        yield [int(drawn * size) for drawn in islice(uniforms(seed), 16)]


def _stream(tokenizer: Tokenizer, tokens: Sequence[int]) -> dict[str, Any]:
    decoder = StreamDecoder(tokenizer)
    pieces = [*map(decoder.add, tokens), decoder.finish()]
    assert "".join(pieces) == tokenizer.decode(tokens)
    return {"tokens": list(tokens), "pieces": pieces}


def _template(name: str) -> ChatTemplate:
    entry = template_entry(name)
    return ChatTemplate(entry["template"], entry["special_tokens"])


def _turns(template: ChatTemplate) -> Mapping[str, Any]:
    turns, reason = chat_turns(template.render)
    assert turns is not None, reason
    return turns


def chat_vectors() -> list[dict[str, Any]]:
    """Each template's pieces, and the text of every conversation that they cover."""
    entries = []
    for name in NAMES:
        template = _template(name)
        turns, cases = _turns(template), []
        for messages in TRANSCRIPTS:
            try:
                text = assemble(turns, messages, NOW)
            except InputError:
                continue
            assert text == template.render(messages, strftime_now=NOW.strftime)
            cases.append({"date": NOW.date().isoformat(), "messages": messages, "text": text})
        entries.append({"name": name, "turns": turns, "conversations": cases})
    return entries


def chat_ids(tokenizers: Mapping[str, str]) -> list[dict[str, Any]]:
    """Conversations as token ids, by template and tokenizer; with the control tokens that chat_turns.json lists."""
    entries = []
    for kind, name in _CHATS.items():
        file = kind.replace(" ", "_")
        tokenizer, template = Tokenizer(tokenizers[file]), _template(name)
        turns = {**_turns(template), "control": list(control_tokens(tokenizer, template))}
        cases = []
        for messages in TRANSCRIPTS:
            try:
                cases.append({"messages": messages, "ids": _ids_of_segments(tokenizer, turns, messages)})
            except InputError:  # what the pieces do not cover, apps refuse
                continue
            if "</think>" not in json.dumps(messages):  # marked, it keeps a template from trimming what is behind it
                assert cases[-1]["ids"] == encode_chat(tokenizer, template, messages)
        entries.append({"tokenizer": f"tokenizers/{file}.json", "template": name, "turns": turns, "cases": cases})
    return entries


def _ids_of_segments(
    tokenizer: Tokenizer, turns: Mapping[str, Any], messages: Sequence[Mapping[str, str]]
) -> list[int]:
    """What apps must give: one text, in which control tokens count in the template's parts alone."""
    twin, pattern = tokenizer.twin(turns["control"]), control_pattern(turns["control"])
    parts = [
        pattern.sub(lambda found: twin.aliases[found[0]], text) if written else text
        for text, written in segments(turns, messages, NOW)
    ]
    return twin.encode("".join(parts))


SETTINGS = [
    Sampling(temperature=1.0),
    Sampling(temperature=0.7),
    Sampling(temperature=1.5, top_k=5),
    Sampling(temperature=1.0, top_k=1),
    Sampling(temperature=1.0, top_k=10_000),
    Sampling(temperature=1.0, top_p=0.9),
    Sampling(temperature=1.0, top_p=0.01),
    Sampling(temperature=1.0, min_p=0.1),
    Sampling(temperature=1.0, min_p=1.0),
    Sampling(temperature=0.8, repetition_penalty=1.3),
    Sampling(temperature=0.8, repetition_penalty=0.8),
    Sampling(temperature=0.8, top_k=40, top_p=0.95, min_p=0.05, repetition_penalty=1.1),
]


def sampling_vectors() -> dict[str, Any]:
    """Draws from listed logits of a small vocabulary, and from generated ones of a large vocabulary."""
    random = np.random.default_rng(7)
    logits = [[round(float(value), 3) for value in row] for row in 2.5 * random.normal(size=(12, 24))]
    logits[3] = [1.0] * 24  # all tied
    logits[4][:6] = [4.0, 4.0, 4.0, 3.5, 3.5, 3.5]
    large = {"vocab_size": 5000, "rows": [[[seed, 1.0 + 4 * seed]] for seed in range(8)]}
    note = (
        "Row i of logits gives token i, which joins the history. Numbers are drawn with SplitMix64, one for each token "
        "where temperature is above 0; see runtimes/sampling.py. Rows of `large` are made as make.py tells."
    )
    settings = [Sampling(), Sampling(repetition_penalty=1.5), *SETTINGS]
    return {
        "note": note,
        "first_uniforms_of_seed_0": list(islice(uniforms(0), 4)),
        "logits": logits,
        "cases": [_draws(logits, sampling, seed) for seed, sampling in enumerate(settings)],
        "large": large | {"cases": [_draws(large_logits(large), value, seed) for seed, value in enumerate(settings)]},
    }


def _draws(logits: Sequence[Sequence[float]], sampling: Sampling, seed: int) -> dict[str, Any]:
    settings = asdict(sampling) | {"seed": seed if seed % 3 else (1 << 64) - 1 - seed}
    case = {"sampling": settings, "history": [0, 5, 5, 23]}
    return case | {"tokens": drawn_tokens(logits, case)}


def drawn_tokens(logits: Sequence[Sequence[float]], case: Mapping[str, Any]) -> list[int]:
    """Row i of the logits gives token i; a chosen token joins the history."""
    sampling = Sampling(**case["sampling"])
    random = uniforms(sampling.seed)
    history = list(case["history"])
    for row in logits:
        history.append(sample(np.array(row, np.float32), sampling, history, random))
    return history[len(case["history"]) :]


def large_logits(large: Mapping[str, Any]) -> list[NDArray[np.float32]]:
    """The logits that the entry `large` of sampling.json describes."""
    return [generated(rows, large["vocab_size"]) for rows in large["rows"]]


def generated(rows: Sequence[Sequence[float]], size: int) -> NDArray[np.float32]:
    """A sum of rows [seed, scale], see make.py: float32 (size,)."""
    total = np.zeros(size, np.float64)
    for seed, scale in rows:
        total += scale * (np.fromiter(islice(uniforms(int(seed)), size), np.float64) - 0.5)
    return total.astype(np.float32)
