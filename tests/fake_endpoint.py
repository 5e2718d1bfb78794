"""An OpenAI-compatible endpoint on the loopback interface that answers what a test tells it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Fake:
    """What the server answers: functions of (path, body), taken in turn, the last one again and again."""

    def __init__(self):
        self.script, self.asked, self.headers, self.models = [], [], [], ["small"]

    def next(self, path, body):
        self.asked.append((path, body))
        answer = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        return answer(path, body) if callable(answer) else answer


def respond(fake, path, body):
    if path.endswith("/models"):
        return 200, {}, {"data": [{"id": name} for name in fake.models]}
    return fake.next(path, body)


@contextmanager
def fake_endpoint() -> Iterator[Fake]:
    fake = Fake()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            fake.headers.append(dict(self.headers))
            length = int(self.headers.get("Content-Length") or 0)
            status, headers, content = respond(fake, self.path, json.loads(self.rfile.read(length) or b"null"))
            chunks = content if isinstance(content, list) else [content]
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            try:
                for chunk in chunks:
                    time.sleep(0.2 if len(chunks) > 1 and chunks[0] == b" " else 0)
                    self.wfile.write(chunk if isinstance(chunk, bytes) else json.dumps(chunk).encode())
            except OSError:
                pass

        do_GET = do_POST  # noqa: N815

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        fake.url = f"http://127.0.0.1:{running.server_port}"
        yield fake
        running.shutdown()


def said(text, **more):
    content = {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "text": text}]}
    return 200, {}, content | {"usage": {"prompt_tokens": 7, "completion_tokens": 3}} | more


def scored(*rows):
    """Log-probabilities by prompt, each with one generated token behind it; listed backwards."""
    choices = [{"index": index, "logprobs": {"token_logprobs": [*row, -9.0]}} for index, row in enumerate(rows)]
    return 200, {}, {"choices": choices[::-1]}
