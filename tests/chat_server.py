"""A chat server as a process of its own. It decodes the image that it was sent and answers from its mean grey.

    python chat_server.py FAULT FIRST COUNT [REDIRECT_TO]

Options are put in alphabetical order and the image's mean grey (0..1) picks one; without options the mean is told in words.
Where earlier turns hold examples, the answer is that of the example whose image is nearest in mean grey. Requests number FIRST
to FIRST + COUNT - 1 meet the FAULT instead. Its first line is the port. GET /seen tells the requests so far, as JSON.
"""

from __future__ import annotations

import base64
import io
import json
import re
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock

from PIL import Image, ImageStat

SEEN: list[dict[str, object]] = []
LOCK = Lock()


def grey(message: dict[str, object]) -> float:
    """The mean of the image in a message, 0..1."""
    urls = [part["image_url"]["url"] for part in message["content"] if part["type"] == "image_url"]  # type: ignore[attr-defined]
    (url,) = urls
    start, _, data = url.partition(",")
    assert start == "data:image/png;base64", start
    with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as image:
        assert not image.info, image.info
        return float(ImageStat.Stat(image.convert("L")).mean[0] / 255)


def words(message: dict[str, object]) -> str:
    (text,) = [part["text"] for part in message["content"] if part["type"] == "text"]  # type: ignore[attr-defined]
    return str(text)


def answer(body: dict[str, object]) -> str:
    *earlier, last = body["messages"]  # type: ignore[misc]
    mean = grey(last)
    if earlier:
        examples = [(abs(grey(one) - mean), other["content"]) for one, other in zip(earlier[::2], earlier[1::2], strict=True)]
        return str(min(examples)[1])
    options = sorted(re.findall(r"^(?:\w+\)|-) (.*)$", words(last), re.MULTILINE))
    if not options:
        return f"The mean grey is {round(mean * 255)}."
    if "Several" in words(last):
        return "\n".join(options[: int(mean * (len(options) + 1))]) or "none"
    return options[min(int(mean * len(options)), len(options) - 1)]


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.reply(200, json.dumps(SEEN).encode())

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        body = json.loads(raw)
        with LOCK:
            number = len(SEEN)
            about = {
                "path": self.path,
                "key": self.headers.get("Authorization", ""),
                "bytes": len(raw),
                "words": words(body["messages"][-1]),
            }
            SEEN.append({**about, "grey": grey(body["messages"][-1]), "turns": len(body["messages"]), "model": body["model"]})
        fault, first, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
        said = json.dumps({"choices": [{"message": {"role": "assistant", "content": answer(body)}, "finish_reason": "stop"}]}).encode()
        if first <= number < first + count:
            self.fail(fault, said)
        else:
            self.reply(200, said)

    def fail(self, fault: str, said: bytes) -> None:
        if fault.isdecimal():
            told = {"error": {"message": f"no luck at {self.headers['Host']} with {self.headers.get('Authorization')}"}}
            self.reply(int(fault), json.dumps(told).encode(), {"Retry-After": "0"} if fault == "429" else {})
        elif fault == "429-long":
            self.reply(429, b"{}", {"Retry-After": "3600"})
        elif fault == "slow":
            time.sleep(3.0)
            self.reply(200, said)
        elif fault == "hang":
            time.sleep(30.0)
        elif fault == "drip":
            self.head(200, len(said), {})
            for place in range(len(said)):
                self.wfile.write(said[place : place + 1])
                time.sleep(0.05)
        elif fault == "disconnect":
            self.head(200, len(said), {})
            self.wfile.write(said[: len(said) // 2])
            self.close_connection = True
        elif fault == "broken":
            self.reply(200, said[:-3])
        elif fault == "redirect":
            self.reply(307, b"", {"Location": f"{sys.argv[4]}/chat/completions"})
        else:
            message = {"refuse": {"content": None, "refusal": "no"}, "filter": {"content": "white"}}.get(fault, {"content": fault})
            ended = "content_filter" if fault == "filter" else "stop"
            self.reply(200, json.dumps({"choices": [{"message": message, "finish_reason": ended}]}).encode())

    def head(self, status: int, length: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(length), **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def reply(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.head(status, len(content), headers or {})
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is no news."""


if __name__ == "__main__":
    server = Server(("127.0.0.1", 0), Handler)
    sys.stdout.write(f"{server.server_address[1]}\n")
    sys.stdout.flush()
    server.serve_forever()
