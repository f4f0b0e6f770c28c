"""A connection to Milvus: a file of Milvus Lite or a server, with a bounded number of tries and errors of one line."""

import contextlib
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vpr.common.errors import UserError
from vpr.common.files import flock
from vpr.database.engine import Unreachable

WAITS = (0.25, 0.5, 1.0, 2.0, 4.0)  # seconds before a second, third, ... try
CONNECT_SECONDS = 3.0
SILENT = {"UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "UNKNOWN", "INTERNAL", "RATE_LIMIT", "2"}  # 2: no connection
SECRETS = "set MILVUS_TOKEN, or MILVUS_USER and MILVUS_PASSWORD, in the environment"


class Refused(UserError):
    """The server has answered, and refuses what it was asked."""


class MilvusConnection:
    """Calls of a MilvusClient that are repeated where nobody answers: all calls here may be made twice.

    pymilvus by itself repeats a call 75 times on the channel that lost its server, and not after a deadline or on a
    channel that was closed; here each try has a channel of its own.
    """

    def __init__(self, target: str):
        """Connect to a file of Milvus Lite, or to http://HOST:PORT.
        Raises a UserError: a package is missing, the file is open elsewhere, or nobody answers."""
        self.target, self._file = target, None if "://" in target else Path(target)
        if "@" in target:
            raise UserError(
                f"the address of Milvus holds a user or a password: name host and port alone, and {SECRETS}"
            )
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # of gRPC's part in C++, which reads it once
        try:
            import pymilvus

            if self._file:
                import milvus_lite.server_manager as lite
        except ImportError as error:
            raise UserError(
                f"--engine=milvus needs pymilvus and milvus-lite, found none ({error.name}): python -m pip install -r "
                "requirements-milvus.txt"
            ) from error
        for name in ("pymilvus", "milvus_lite", "grpc"):  # they would log what is answered to here, with tracebacks
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
        self._release = lite.server_manager_instance.release_server if self._file else None
        self._client_of = pymilvus.MilvusClient
        self._client: Any = None
        self.is_patient = True  # a call waits for a server that is being started again; else two tries are made at once
        self.version = str(self.call("get_server_version"))  # what the server calls itself
        self.is_lite = "lite" in self.version.lower()  # Milvus Lite, in this process or another

    def call(self, work: str | Callable[..., Any], *positional: Any, **named: Any) -> Any:
        """A method of a client, or a function of one, by a new client where the last one has lost its server.
        Raises Refused: the server refuses; an Unreachable: nobody answers, after all tries; a UserError: it does not
        let us in, or the file is open elsewhere."""
        began, waits = time.monotonic(), WAITS if self.is_patient else WAITS[:1]
        for wait in (*waits, 0):
            try:
                self._client = self._client or self._connected()
                if callable(work):
                    return work(self._client)
                return getattr(self._client, work)(*positional, **named, retry_times=0)
            except UserError:
                raise
            except Exception as error:  # gRPC and pymilvus raise their own, and those of sockets and closed channels
                self._raise_unless_silent(error)
                self._drop()
            time.sleep(wait)
        tried = f"{len(waits) + 1} tries in {time.monotonic() - began:.0f} s"
        raise Unreachable(
            f"Milvus at {self.target} does not answer, after {tried}: start it again and repeat the command; all that "
            "was added before is kept"
        )

    def close(self) -> None:
        """Let go of the server; a file is closed, so that other processes can open it."""
        self._drop()
        if self._release:
            self._release(str(self._file))

    def _connected(self) -> Any:
        if self._file and self._file.is_file():
            raise UserError(f"{self._file} is a file, wanted the folder that Milvus Lite 3 makes of it: name another")
        user, password, token = (os.environ.get(f"MILVUS_{name}", "") for name in ("USER", "PASSWORD", "TOKEN"))
        try:
            if self._file:
                self._file.parent.mkdir(parents=True, exist_ok=True)
            return self._client_of(
                self.target, user=user, password=password, token=token, timeout=CONNECT_SECONDS, dedicated=True
            )
        except Exception:
            if self._file:
                _check_lock(self._file)
            raise

    def _drop(self) -> None:
        client, self._client = self._client, None
        with contextlib.suppress(Exception):
            client.close()

    def _raise_unless_silent(self, error: Exception) -> None:
        """Raise in one line what a server said; pass where there was no answer, or one that asks to come back later."""
        codes, part = set[str](), error
        for _ in range(10):  # the names of codes in it and in what it came of
            code = getattr(part, "code", None)
            code = code() if callable(code) else code
            codes.add(str(getattr(code, "name", code)))
            part = getattr(part, "__cause__", None) or getattr(part, "__context__", None)  # type: ignore[assignment]
        if codes & {"UNAUTHENTICATED", "PERMISSION_DENIED"}:
            raise UserError(f"Milvus at {self.target} does not let us in: {SECRETS}") from None
        closed = "closed" in str(error).lower()  # our channel, or the files of a server that is going down
        if not (closed or isinstance(error, OSError) or codes & SILENT):
            reason = str(getattr(error, "message", "") or error or type(error).__name__)
            raise Refused(f"Milvus at {self.target} says: {reason}") from None


def _check_lock(path: Path) -> None:
    """Raise a UserError where a file of Milvus Lite cannot be opened, or another process has, which locks it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path / "LOCK", "ab") as lock:
            is_free = flock(lock)
    except OSError as error:
        raise UserError(f"{path} cannot be opened by Milvus Lite ({error}): choose another folder") from error
    if is_free is False:
        raise UserError(
            f"{path} is open in another process, found a lock: Milvus Lite is opened by one at a time; end that "
            "process, or serve the file to several with: milvus-lite server --host 127.0.0.1 --port 19530 "
            f"--data-dir {path}"
        )
