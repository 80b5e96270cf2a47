"""moto's S3 server on 127.0.0.1, started and ended here, and a proxy before it that makes faults.

Where obstore or moto is missing, tests are skipped; with EXACT_PREP_REQUIRE_CLOUD=1, as in `.ci/run`, they fail.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass

import pytest
from fault_proxy import FaultProxy

NUMBERS = itertools.count()


@pytest.fixture(autouse=True, scope="session")
def cloud() -> None:
    """What these tests need."""
    for module in ("obstore", "moto"):
        if importlib.util.find_spec(module) is None:
            if os.environ.get("EXACT_PREP_REQUIRE_CLOUD"):
                pytest.fail(f"{module} is missing, and here a skip is a failure")
            pytest.skip(f"{module} is not installed")


@pytest.fixture(autouse=True, scope="session")
def own_home(tmp_path_factory):
    """No credentials and no files of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        yield


@dataclass(frozen=True)
class Bucket:
    """A bucket of its own for each test."""

    url: str
    options: dict[str, str]
    endpoint: str

    def arguments(self) -> list[str]:
        """The options as the command line takes them."""
        return [word for name, value in self.options.items() for word in ("--store-option", f"{name}={value}")]


@pytest.fixture(scope="session")
def server(cloud) -> str:
    """The address of the S3 server."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            try:
                socket.create_connection(("127.0.0.1", port), 0.2).close()
                break
            except OSError:
                assert process.poll() is None, "the server did not start"
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


def make_bucket(server: str) -> Bucket:
    name = f"bucket-{os.getpid()}-{next(NUMBERS)}"
    urllib.request.urlopen(urllib.request.Request(f"{server}/{name}", method="PUT"), timeout=20).close()
    options = {"endpoint": server, "region": "us-east-1", "access_key_id": "AKID", "secret_access_key": "sEcReT"}
    return Bucket(f"s3://{name}", options, server)


@pytest.fixture
def bucket(server) -> Bucket:
    return make_bucket(server)


@pytest.fixture
def proxy(server):
    """A proxy before the server, without faults until a test asks for some."""
    with FaultProxy(server) as running:
        yield running


@pytest.fixture
def shaky(server, proxy) -> Bucket:
    """A bucket behind the proxy; the client gives up on an answer after two seconds."""
    bucket = make_bucket(server)
    options = {**bucket.options, "endpoint": proxy.url, "timeout": "2s", "max_retries": "4", "retry_timeout": "60"}
    return Bucket(bucket.url, options, server)
