"""A proxy before an S3 server that spoils some answers, and counts what it saw."""

from __future__ import annotations

import http.client
import threading
import time
from collections import Counter, deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable

FAULTS = ("503", "500", "timeout", "cut", "reset", "slow")
"""What passes if it is tried again."""


class FaultProxy:
    """Listens on 127.0.0.1. Each request that `wants` takes the next of `faults`, if there is one left.

    Faults: a status such as 503; `timeout`, no answer; `cut`, half of the body; `reset`, the connection closed before
    the answer; `slow`, the answer in pieces; `whole`, 200 and everything where a range was asked for; `404`, `403`.
    """

    def __init__(self, server: str) -> None:
        self._server = urlsplit(server).netloc
        self.faults: deque[str] = deque()
        self.wants: Callable[[str, str], bool] = lambda method, path: True
        self.seen: list[tuple[str, str, str]] = []
        """Method, path and range of each request."""
        self.made: Counter[str] = Counter()
        """Faults that were made."""
        self.sent = 0
        """Bytes of bodies that were answered."""
        self._lock = threading.Lock()

    def fault_of(self, method: str, path: str, range_: str) -> str:
        with self._lock:
            self.seen.append((method, path, range_))
            fault = self.faults.popleft() if self.faults and self.wants(method, path) else ""
            if fault:
                self.made[fault] += 1
            return fault

    def __enter__(self) -> FaultProxy:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                fault = proxy.fault_of(self.command, self.path, self.headers.get("Range", ""))
                if fault == "timeout":
                    time.sleep(3)
                if fault in ("timeout", "reset"):
                    self.close_connection = True
                    return
                if fault.isdigit():
                    self.send_response(int(fault))
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                spoiled = "range" if fault == "whole" else ""
                headers = {name: value for name, value in self.headers.items() if name.lower() != spoiled}
                connection = http.client.HTTPConnection(proxy._server, timeout=60)
                connection.request(self.command, self.path, body=body, headers=headers)
                answer = connection.getresponse()
                data = answer.read()
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                        self.send_header(name, value)
                length = answer.getheader("Content-Length") if self.command == "HEAD" else len(data)
                self.send_header("Content-Length", str(length or 0))
                self.end_headers()
                connection.close()
                if fault == "cut":
                    data = data[: len(data) // 2]
                    self.close_connection = True
                pieces = 4 if fault == "slow" else 1
                step = -(-len(data) // pieces) or 1
                for start in range(0, len(data), step):
                    self.wfile.write(data[start : start + step])
                    self.wfile.flush()
                    time.sleep(0.1 * (fault == "slow"))
                with proxy._lock:
                    proxy.sent += len(data)

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer  # noqa: N815

            def log_message(self, *args: object) -> None:
                """Nothing."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None:
                """A client that gave up."""

        self._listener = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._listener.server_port}"
        self._thread = threading.Thread(target=self._listener.serve_forever, args=(0.05,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown()
        self._listener.server_close()
        self._thread.join()
