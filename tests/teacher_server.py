"""A local chat endpoint with scripted behavior."""

import base64
import io
import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from local_server import running
from PIL import Image

Behavior = Callable[["Handler", dict[str, Any]], None]


class Handler(BaseHTTPRequestHandler):
    """Runs one behavior of the server's script for each request, then `otherwise` for all later requests."""

    server: "TeacherServer"
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.requests.append((self.path, headers, body))
        behave = self.server.script.pop(0) if self.server.script else self.server.otherwise
        behave(self, body)

    def log_message(self, *words: object) -> None:
        pass

    def send(self, code: int, text: str, **headers: str) -> None:
        data = text.encode()
        self.send_response(code)
        for name, value in ({"content-type": "application/json"} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class TeacherServer(ThreadingHTTPServer):
    """Records (path, headers, body) in `requests`.

    `script` has one behavior for each of the first requests, `otherwise` is the behavior for all later requests.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.script: list[Behavior] = []
        self.otherwise: Behavior = good
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # some tests use clients that disconnect


def serving() -> AbstractContextManager[TeacherServer]:
    return running(TeacherServer())


def completion(text: str | None, finish: str = "stop") -> str:
    message = {"role": "assistant", "content": text}
    return json.dumps({"id": "x", "choices": [{"index": 0, "finish_reason": finish, "message": message}]})


def rounds_for(body: dict[str, Any], number: int) -> list[dict[str, str]]:
    """Rounds that depend only on the request."""
    return [{"question": f"What is {body['seed']} {n}?", "answer": f"It is {n}."} for n in range(number)]


def good(handler: Handler, body: dict[str, Any]) -> None:
    number = int(prompt_of(body).split("exactly ")[1].split()[0])
    handler.send(200, completion("Here:\n```json\n" + json.dumps({"rounds": rounds_for(body, number)}) + "\n```"))


def saying(text: str | None, finish: str = "stop") -> Behavior:
    return lambda handler, _: handler.send(200, completion(text, finish))


def failing(code: int, text: str = "{}", **headers: str) -> Behavior:
    return lambda handler, _: handler.send(code, text, **headers)


def silent(handler: Handler, _: dict[str, Any]) -> None:
    time.sleep(1.0)
    handler.close_connection = True


def truncated_body(handler: Handler, _: dict[str, Any]) -> None:
    handler.send_response(200)
    handler.send_header("content-length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    handler.close_connection = True


def prompt_of(body: dict[str, Any]) -> str:
    return body["messages"][0]["content"][1]["text"]


def picture_of(body: dict[str, Any]) -> Image.Image:
    head, data = body["messages"][0]["content"][0]["image_url"]["url"].split(",", 1)
    assert head == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))
