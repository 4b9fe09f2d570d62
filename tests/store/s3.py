"""An S3 server on loopback behind a proxy that counts requests and can be told to fail."""

import http.client
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from moto.server import ThreadedMotoServer

BUCKET = "packets-of-tests"


class S3:
    """The bucket as the stores of a test see it.

    Attributes:
        requests: method and path of everything that was asked for.
        fault: what becomes of requests: None (they are answered), `unavailable` (503), `stalled` (half an answer and
            then nothing), `truncated` (half an answer and the end), `wrong` (other bytes), `refused` (403).
        methods: those that the fault concerns.
        spared: how many requests come before the fault.
        delay: seconds that every answer takes longer than the server.
    """

    def __init__(self, port: int):
        self.requests: list[tuple[str, str]] = []
        self.fault: str | None = None
        self.spared = 0
        self.delay = 0.0
        self.methods: tuple[str, ...] = ("GET", "PUT", "POST", "HEAD")
        self.let_go = threading.Event()
        self._moto = port
        self._counting = threading.Lock()
        self._replacing = threading.Lock()  # moto closes an object that is replaced while its own answer still reads it
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def options(self) -> dict[str, Any]:
        """What a store needs to know about the server."""
        return {
            "endpoint": f"http://127.0.0.1:{self._server.server_port}",
            "region": "us-east-1",
            "access_key_id": "test",
            "secret_access_key": "test",
            "retry_config": {"max_retries": 0},
        }

    @property
    def remote(self) -> dict[str, Any]:
        """The arguments of a store that uses it."""
        return {"remote": f"s3://{BUCKET}/shared", "remote_options": self.options, "remote_timeout": 2.0}

    def objects(self) -> dict[str, bytes]:
        """Everything in the bucket, asked of the server itself."""
        names = self.ask("GET", f"/{BUCKET}?list-type=2").decode().split("<Key>")[1:]
        keys = [name.split("</Key>")[0] for name in names]
        return {key: self.ask("GET", f"/{BUCKET}/{key}") for key in keys}

    def ask(self, method: str, path: str, body: bytes | None = None) -> bytes:
        signature = "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request"
        headers = {"Authorization": signature, "Content-Type": "application/octet-stream"}
        url = f"http://127.0.0.1:{self._moto}{path}"
        request = urllib.request.Request(url, data=body, method=method, headers=headers)
        with urllib.request.urlopen(request) as answer:
            return answer.read()

    def overwrite(self, key: str, body: bytes) -> None:
        self.ask("PUT", f"/{BUCKET}/{key}", body)

    def asked(self, method: str) -> int:
        """How many requests of this method there were."""
        return sum(found == method for found, _ in self.requests)

    def close(self) -> None:
        self.let_go.set()
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        s3 = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def forward(self) -> None:
                with s3._counting:
                    s3.requests.append((self.command, self.path))
                    number = len(s3.requests)
                time.sleep(s3.delay)
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                fault = s3.fault if self.command in s3.methods and number > s3.spared else None
                if fault in ("unavailable", "refused"):
                    self.answer(503 if fault == "unavailable" else 403, {}, b"")
                    return
                with s3._replacing if self.command == "PUT" else nullcontext():
                    connection = http.client.HTTPConnection("127.0.0.1", s3._moto)
                    connection.request(self.command, self.path, body, dict(self.headers.items()))
                    answer = connection.getresponse()
                    found = answer.read()
                    connection.close()
                if fault == "stalled" and not found:
                    s3.let_go.wait(30)
                if fault == "wrong":
                    found = found[:-1] + bytes([found[-1] ^ 1])
                self.answer(answer.status, answer.headers, found, fault)

            def answer(self, status: int, headers: Mapping[str, str], body: bytes, fault: str | None = None) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    if name.lower() not in ("content-length", "connection", "transfer-encoding", "date", "server"):
                        self.send_header(name, value)
                length = headers.get("content-length", "0") if self.command == "HEAD" else str(len(body))
                self.send_header("content-length", length)
                self.end_headers()
                half = fault in ("stalled", "truncated")
                self.wfile.write(body[: len(body) // 2] if half else body)
                if half:
                    self.wfile.flush()
                    self.close_connection = True
                if fault == "stalled":
                    s3.let_go.wait(30)

            def log_message(self, format: str, *args: Any) -> None:
                pass

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = forward

        return Handler


@contextmanager
def s3_server() -> Iterator[int]:
    """The port of an S3 server."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        yield server.get_host_and_port()[1]
    finally:
        server.stop()


@contextmanager
def fresh_bucket(port: int) -> Iterator[S3]:
    """An empty bucket of the server."""
    s3 = S3(port)
    s3.ask("POST", "/moto-api/reset")
    s3.ask("PUT", f"/{BUCKET}")
    try:
        yield s3
    finally:
        s3.close()
