"""Writes the files of this folder, which the tests of Python, Kotlin and Swift share: `make golden`.

    awkward.json           {"texts": [{"name", "text"}]}
    tokenizers/*.json      small tokenizers of the kinds that models have, trained here
    awkward_ids.json       kind of tokenizer -> {"tokenizer": its file, "cases": one for each text, "streams"}
    awkward_smollm2.json   the same for SmolLM2's own tokenizer, which is too large for this folder
    chat_turns.json        templates taken apart, conversations, and the text that each template writes
    chat_ids.json          the token ids of conversations: control tokens count in the template's text alone
    sampling.json          logits, settings, seeds, and the tokens that are drawn
    bundle/good/           a whole bundle, but for its model.onnx, which holds no model
    bundle/broken.json     what is wrong with other bundles, and words that the message about it must have
    device_results.json    what an app writes for `pocketlm device` and `pocketlm bench --import`
    replay.json            logits of a runtime against bundle/good/golden.json, and the KL that comes out
    int8_cache/            onnx/, a tiny model that keeps int8 in its cache; greedy.json: a prompt and what follows it
    facts.db               an index of `pocketlm index`
    search.json            questions and their keywords; words and their stems; what is found in facts.db, with scores;
                           prompts: messages, passages that a source named "given" finds (or its error), what is kept
                           (messages, passages), the prompt and its ids with bundle/good, what the user is told; and
                           the tokens of all texts that are counted on the way

A case of a text is {"user": ids where no control token counts; null if the tokenizer cannot write one as plain text,
"template": ids where all count, absent if they are the same, "decoded": the text of the ids "user" without control
tokens, absent if it is the text}. A stream is {"tokens", "pieces": what each token shows when it comes, then what the
end shows}.

Logits that would be long to list are sums of rows: a row [seed, scale] is scale * (u - 0.5) for the numbers u of
``uniforms(seed)``. The sum is taken in float64, from left to right, and rounded to float32.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from golden.bundles import broken_bundles, device_results, good_bundle, replays
from golden.int8_cache import greedy, write_model
from golden.search import search_vectors, write_facts
from golden.texts import TEXTS
from golden.vectors import awkward_ids, chat_ids, chat_vectors, sampling_vectors, small_tokenizers

FOLDER = Path(__file__).parent
SMOLLM2 = "awkward_smollm2.json"
FACTS = "facts.db"
INT8_CACHE = "int8_cache"


def contents() -> dict[str, str]:
    """Path in this folder -> text, of all files but the index and that of SmolLM2."""
    tokenizers = small_tokenizers()
    bundle = good_bundle(tokenizers)
    files = {f"bundle/good/{name}": text for name, text in bundle.items()}
    files |= {f"tokenizers/{name}.json": content for name, content in tokenizers.items()}
    return files | {
        "awkward.json": _lines({"texts": [{"name": name, "text": text} for name, text in TEXTS.items()]}),
        "awkward_ids.json": _lines(
            {name: {"tokenizer": f"tokenizers/{name}.json"} | awkward_ids(text) for name, text in tokenizers.items()}
        ),
        "chat_turns.json": _lines(chat_vectors()),
        "chat_ids.json": _lines(chat_ids(tokenizers)),
        "sampling.json": _lines(sampling_vectors()),
        "bundle/broken.json": _lines(broken_bundles(bundle)),
        "replay.json": _lines(replays(bundle)),
        "search.json": _lines(search_vectors(bundle)),
        "device_results.json": json.dumps(device_results(), indent=1) + "\n",
    }


def smollm2_content() -> str:
    """Text of the file for SmolLM2, whose tokenizer is recovered from its GGUF file."""
    from pocketlm.export.fetch import fetch
    from pocketlm.export.open_checkpoint import open_checkpoint

    files = open_checkpoint(str(fetch("smollm2-135m"))).tokenizer_files()
    return _lines({"smollm2-135m": awkward_ids(files["tokenizer.json"].decode())})


def _lines(content: Any, depth: int = 0) -> str:
    """JSON with one entry a line where that helps to read a difference; ends with a newline."""
    if depth < 3 and isinstance(content, Mapping) and content:
        inner = [f"{json.dumps(key)}:{_lines(value, depth + 1)}" for key, value in content.items()]
        text = "{" + ",\n".join(inner) + "}"
    elif depth < 3 and isinstance(content, list) and content and isinstance(content[0], dict | list):
        text = "[\n" + ",\n".join(_lines(value, 3) for value in content) + "\n]"
    else:
        text = json.dumps(content, separators=(",", ":"))
    return text if depth else text + "\n"


def main() -> None:
    """Write all files anew."""
    write_facts(FOLDER / FACTS)
    write_model(FOLDER / INT8_CACHE / "onnx")
    (FOLDER / INT8_CACHE / "greedy.json").write_text(_lines(greedy(FOLDER / INT8_CACHE / "onnx")), newline="\n")
    for name, text in (contents() | {SMOLLM2: smollm2_content()}).items():
        path = FOLDER / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
