"""An object store for tests: moto's S3 on loopback.

`python -m tests.helpers.object_store PORT [SECONDS]` serves one in its own process, each answer delayed by SECONDS.
SIGUSR1 makes it cut and refuse connections, SIGUSR2 listen again with the same objects. SIGHUP makes it print the
requests since the last time.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import nullcontext, suppress
from typing import Any, ClassVar
from weakref import WeakSet

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

BUCKET = "lab"
KEYS = {
    "AWS_ACCESS_KEY_ID": "key-of-a-test",
    "AWS_SECRET_ACCESS_KEY": "hush/of+a+test",
    "AWS_DEFAULT_REGION": "us-east-1",
}
"""The credentials that it accepts. Signatures are not verified."""
FORBIDDEN = b"<Error><Code>InvalidAccessKeyId</Code><Message>The AWS Access Key Id does not exist.</Message></Error>"


class ObjectStore:
    """A server on one port with one bucket, from `listen` to `hang_up`, which can be repeated.

    Attributes:
        asked: number of requests by their method.

    Args:
        port: 0 for a free one.
        delay: seconds from a request to its answer.
    """

    def __init__(self, port: int = 0, delay: float = 0.0) -> None:
        self.port, self.delay, self.asked = port, delay, Counter[str]()
        self._app = DomainDispatcherApplication(create_backend_app)
        self._writing = threading.Lock()
        self._server: BaseWSGIServer | None = None
        self._thread: threading.Thread | None = None
        logging.getLogger("werkzeug").setLevel(logging.ERROR)

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables with its address and credentials."""
        address = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}", "AWS_DEFAULT_REGION": "us-east-1"}
        return KEYS | address | {"AWS_EC2_METADATA_DISABLED": "true"}

    def listen(self) -> ObjectStore:
        """Accept connections from now on."""
        self._server = make_server("127.0.0.1", self.port, self._answer, threaded=True, request_handler=_Handler)
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        return self

    def hang_up(self) -> None:
        """Refuse connections from now on; objects stay."""
        if self._server is None or self._thread is None:
            return
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        for connection in list(_Handler.connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._server = self._thread = None

    def make(self, bucket: str = BUCKET) -> None:
        """Make a bucket."""
        self.client().create_bucket(Bucket=bucket)

    def client(self) -> Any:
        """Return a boto3 client, which shares nothing with the client of a storage."""
        import boto3

        names = {"aws_access_key_id": KEYS["AWS_ACCESS_KEY_ID"], "aws_secret_access_key": KEYS["AWS_SECRET_ACCESS_KEY"]}
        url = f"http://127.0.0.1:{self.port}"
        return boto3.client("s3", endpoint_url=url, region_name="us-east-1", **names)

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        self.asked[environ["REQUEST_METHOD"]] += 1
        time.sleep(self.delay)
        if f"={KEYS['AWS_ACCESS_KEY_ID']}/" not in environ.get("HTTP_AUTHORIZATION", ""):
            start_response("403 Forbidden", [("Content-Type", "application/xml")])
            return [b"" if environ["REQUEST_METHOD"] == "HEAD" else FORBIDDEN]
        # moto looks for the object of a conditional write first, and writes then: in S3 that is one step
        with self._writing if environ["REQUEST_METHOD"] == "PUT" else nullcontext():
            answer: Iterable[bytes] = self._app(environ, start_response)
            return answer


class _Handler(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"  # connections are kept, as S3 keeps them
    connections: ClassVar[WeakSet[socket.socket]] = WeakSet()

    def setup(self) -> None:
        """Remember the connection, so that it can be cut."""
        self.connections.add(self.request)
        super().setup()

    def log_request(self, *_: Any) -> None:
        """Print nothing."""


def main() -> None:
    """Serve until the process is killed."""
    store = ObjectStore(int(sys.argv[1]), float((sys.argv[2:] or ["0"])[0])).listen()
    store.make()
    wishes = {signal.SIGUSR1: store.hang_up, signal.SIGUSR2: store.listen}
    signal.pthread_sigmask(signal.SIG_BLOCK, [*wishes, signal.SIGHUP])
    print(f"{os.getpid()} serves s3://{BUCKET} on {store.port}", flush=True)
    while True:
        got = signal.sigwait([*wishes, signal.SIGHUP])
        if got == signal.SIGHUP:
            print(json.dumps(store.asked), flush=True)
            store.asked.clear()
        else:
            wishes[signal.Signals(got)]()


if __name__ == "__main__":
    main()
