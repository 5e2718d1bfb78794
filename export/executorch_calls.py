"""How many tokens one call of a program for ExecuTorch takes."""

from __future__ import annotations

# Beyond so many tokens of context, buffers for a call that brings all of them at once would be most of the memory.
WHOLE_CONTEXT = 2048
CALL_TOKENS = 512


def most_tokens(context: int) -> int:
    """What a call takes; ExecuTorch and XNNPACK reserve memory for as many, and runners divide longer prompts.

    All of a short context: where a call takes fewer, ExecuTorch's runner believes in a sliding window and does not
    count tokens, so that an answer without a limit of its own ends at the cache's end with an error instead of a stop.
    """
    return context if context <= WHOLE_CONTEXT else CALL_TOKENS
