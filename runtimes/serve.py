"""`pocketlm serve`: a bundle behind OpenAI's API, with the artifact's own numerics.

One generation at a time, because there is one session. Only this machine is listened to, unless another address is
asked for; then every request needs a token.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import os
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .chat import ChatFiles, load_stop_tokens
from .chat_template import load_chat_template
from .lookup import usable
from .serve_answer import chat_logprobs, completion_logprobs, error_body, usage
from .serve_engine import BusyError, Part, Queue, TokenScore, answer, prompt_tokens
from .serve_request import Asked, parse_chat, parse_completion
from .session import Session
from .tokenizer import load_tokenizer

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

LARGEST_BODY = 1 << 20  # bytes
TOKEN_VARIABLE = "POCKETLM_SERVE_TOKEN"
_LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]", "::1")


@dataclass(frozen=True)
class Server:
    """What answers: a session, the bundle's files, the queue in front of them.

    token   that every request must carry; None on this machine alone
    lookup  as in ``generate``
    """

    name: str
    session: Session
    files: ChatFiles
    queue: Queue
    token: str | None
    started: int = field(default_factory=lambda: int(time.time()))
    cached: list[int] = field(default_factory=list)
    lookup: int | None = None

    def parts(self, asked: Asked, prompt: str | tuple[int, ...] | None) -> AsyncIterator[Part]:
        """The parts of one answer. Raises InputError (when it is first read) for a prompt that cannot be used."""
        tokens = prompt_tokens(self.files, asked, prompt)
        return self.queue.run(lambda: answer(self.session, self.files, asked, tokens, self.cached, self.lookup))


def load_server(
    bundle: Path,
    name: str,
    session: Session,
    token: str | None,
    waiting: int = 16,
    limit_seconds: float = 300.0,
    lookup: int | None = None,
) -> Server:
    """A server over a bundle's files; a model without a chat template only completes."""
    template = load_chat_template(bundle) if (bundle / "chat_template.jinja").is_file() else None
    files = ChatFiles(load_tokenizer(bundle), template, load_stop_tokens(bundle))  # type: ignore[arg-type]
    return Server(name, session, files, Queue(waiting, limit_seconds), token, lookup=lookup)


def make_app(server: Server) -> Starlette:
    """The ASGI application. Raises InputError if the extra is not installed."""
    try:
        from starlette.applications import Starlette
        from starlette.routing import Route
    except ImportError as error:
        raise InputError("serving needs starlette and uvicorn; run: pip install 'pocketlm[serve]'") from error

    async def models(request: Request) -> Response:
        entry = {"id": server.name, "object": "model", "created": server.started, "owned_by": "pocketlm"}
        return _json({"object": "list", "data": [entry]})

    async def completions(request: Request) -> Response:
        return await _respond(server, request, parse_completion(await _body(request)), chat=False)

    async def chat_completions(request: Request) -> Response:
        if server.files.template is None:
            raise InputError("this model has no chat template; use /v1/completions")
        return await _respond(server, request, parse_chat(await _body(request)), chat=True)

    def guarded(handle: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        async def handler(request: Request) -> Response:
            refusal = _refusal(server, request)
            try:
                return refusal or await handle(request)
            except _TooLargeError:
                return _json(
                    error_body(f"the body is larger than {LARGEST_BODY >> 20} MB", "invalid_request_error"), 413
                )
            except InputError as error:
                return _json(error_body(str(error), "invalid_request_error"), 400)
            except BusyError as error:
                return _json(
                    error_body(str(error), "rate_limit_error", "busy"),
                    429,
                    {"Retry-After": str(int(error.seconds) + 1)},
                )

        return handler

    return Starlette(
        routes=[
            Route("/v1/models", guarded(models)),
            Route("/v1/completions", guarded(completions), methods=["POST"]),
            Route("/v1/chat/completions", guarded(chat_completions), methods=["POST"]),
        ]
    )


def _refusal(server: Server, request: Request) -> Response | None:
    """A web page must not reach a model on its reader's machine: its requests name another host or origin."""
    if server.token is not None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
        if not hmac.compare_digest(given, server.token.encode()):
            return _json(error_body("the token is missing or wrong", "authentication_error", "invalid_api_key"), 401)
        return None
    host = request.headers.get("host", "")
    name = host.rpartition(":")[0] if ":" in host and not host.endswith("]") else host
    if name not in _LOCAL_NAMES or "origin" in request.headers:
        return _json(error_body("only programs on this machine may ask", "permission_error"), 403)
    return None


class _TooLargeError(Exception):
    pass


async def _body(request: Request) -> Any:
    """The JSON of a request; raises InputError if it is none."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > LARGEST_BODY:
            raise _TooLargeError
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InputError("the body is not JSON") from error


def _json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    from starlette.responses import JSONResponse

    return JSONResponse(content, status, headers)


async def _respond(server: Server, request: Request, asked: Asked, chat: bool) -> Response:
    from starlette.responses import StreamingResponse

    head = {
        "id": f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(8)}",
        "created": int(time.time()),
        "model": server.name,
    }
    ahead = {"X-Queue-Ahead": str(server.queue.waiting), "X-Queue-Seconds": f"{server.queue.estimate():.0f}"}
    if not asked.stream:
        return await _whole(server, request, asked, chat, head, ahead)
    if len(asked.prompts) > 1:
        raise InputError("several prompts cannot be streamed; send them one by one")
    parts = server.parts(asked, None if chat else asked.prompts[0])
    first = await anext(parts)  # what cannot be answered is refused before anything is sent
    events = _events(server, asked, chat, head, first, parts)
    return StreamingResponse(events, media_type="text/event-stream", headers=ahead)


async def _whole(
    server: Server, request: Request, asked: Asked, chat: bool, head: dict[str, Any], headers: dict[str, str]
) -> Response:
    """All answers in one body; given up when the client leaves."""

    async def collect(prompt: str | tuple[int, ...] | None) -> list[Part]:
        async with aclosing(server.parts(asked, prompt)) as parts:  # type: ignore[type-var]
            return [part async for part in parts]

    async def all_answers() -> list[list[Part]]:
        return [await collect(prompt) for prompt in ((None,) if chat else asked.prompts)]

    work = asyncio.ensure_future(all_answers())
    while not (await asyncio.wait([work], timeout=0.2))[0]:
        if await request.is_disconnected():
            work.cancel()
            await asyncio.wait([work])
            return _json({}, 499)
    answers = work.result()
    choices = [_choice(server, asked, chat, index, parts) for index, parts in enumerate(answers)]
    kind = "chat.completion" if chat else "text_completion"
    counts = usage([parts[-1] for parts in answers])
    return _json(head | {"object": kind, "choices": choices, "usage": counts}, headers=headers)


def _choice(server: Server, asked: Asked, chat: bool, index: int, parts: list[Part]) -> dict[str, Any]:
    text, reason = "".join(part.text for part in parts), parts[-1].reason
    logprobs = _logprobs(server, asked, chat, [entry for part in parts for entry in part.scores])
    content = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
    return {"index": index, **content, "logprobs": logprobs, "finish_reason": reason}


def _logprobs(server: Server, asked: Asked, chat: bool, scores: list[TokenScore]) -> dict[str, Any] | None:
    if asked.logprobs is None:
        return None
    return (chat_logprobs if chat else completion_logprobs)(server.files.tokenizer, scores)


async def _events(
    server: Server, asked: Asked, chat: bool, head: dict[str, Any], first: Part, parts: AsyncIterator[Part]
) -> AsyncIterator[str]:
    """The parts as server-sent events. A failure in mid-answer is an event too: the status was sent already."""
    kind = "chat.completion.chunk" if chat else "text_completion"
    last = first

    def event(choices: list[Any], **more: Any) -> str:
        return f"data: {json.dumps(head | {'object': kind, 'choices': choices} | more)}\n\n"

    def chunk(part: Part, **role: str) -> str:
        content: dict[str, Any] = {"text": part.text}
        if chat:
            content = {"delta": role | ({"content": part.text} if part.text or role else {})}
        logprobs = _logprobs(server, asked, chat, list(part.scores))
        return event([{"index": 0, **content, "logprobs": logprobs, "finish_reason": part.reason}])

    async with aclosing(parts):  # type: ignore[type-var]
        yield chunk(first, role="assistant")
        try:
            async for part in parts:
                last = part
                yield chunk(part)
        except InputError as error:
            yield f"data: {json.dumps(error_body(str(error), 'server_error'))}\n\n"
        if asked.usage_in_stream:
            yield event([], usage=usage([last]))
        yield "data: [DONE]\n\n"


def serve(
    bundle: Path,
    open_session: Callable[[], Session],
    name: str,
    host: str = "127.0.0.1",
    port: int = 8080,
    waiting: int = 16,
    limit_seconds: float = 300.0,
    say: Callable[[str], None] = print,
    lookup: int | None = None,
) -> None:
    """Answer until interrupted.

    waiting        requests that may wait for their turn; more are refused with 429
    limit_seconds  after which an answer is cut
    lookup         as in ``generate``; left out, and said so, if guesses could change answers

    Raises InputError if the address cannot be listened on.
    """
    token = None if _is_local(host) else os.environ.get(TOKEN_VARIABLE) or secrets.token_urlsafe(24)
    session = open_session()
    server = load_server(bundle, name, session, token, waiting, limit_seconds, usable(session, lookup, say))
    app = make_app(server)
    import socket

    import uvicorn

    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise InputError(f"{host}:{port} cannot be listened on ({error}); choose another --host or --port") from error
    with listening:
        address = f"[{host}]" if ":" in host else host
        say(f"{name} answers at http://{address}:{listening.getsockname()[1]}/v1 (Ctrl-C ends it)")
        if token is not None:
            say(
                f"Requests need the token {token}"
                if not os.environ.get(TOKEN_VARIABLE)
                else f"Requests need the token in {TOKEN_VARIABLE}"
            )
        config = uvicorn.Config(app, log_level="warning", timeout_keep_alive=30, h11_max_incomplete_event_size=64 << 10)
        uvicorn.Server(config).run(sockets=[listening])


def _is_local(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError as error:
        raise InputError(f"{host}: is no address; write 127.0.0.1 for this machine alone, 0.0.0.0 for all") from error
