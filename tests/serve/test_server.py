"""Starting and stopping."""

import os
import re
import signal
import socket
import threading
import time
from queue import SimpleQueue

import pytest
from asking import Client, as_bytes

from vpr.common.errors import UserError
from vpr.serve import server
from vpr.serve.settings import Settings


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_once_all_that_had_begun_is_finished(locator, images, monkeypatch, number):
    said, began, locate, answers, lines = SimpleQueue(), threading.Event(), locator.answer_each, [], []

    def slow(*rest):
        began.set()
        time.sleep(0.3)
        return locate(*rest)

    def ask():
        answers.append(client.locate(as_bytes(images[1][6]), timeout=120))

    def end_once_asked():
        nonlocal client
        try:
            while (found := re.fullmatch(r"listening at http://127\.0\.0\.1:(\d+) .*", said.get(timeout=60))) is None:
                pass
            client = Client(int(found[1]))
            asking.start()
            assert began.wait(120)  # a decoder's process has to begin first
        finally:  # whatever went wrong, the server ends
            os.kill(os.getpid(), number)

    monkeypatch.setattr(locator, "answer_each", slow)
    monkeypatch.setattr(server, "say", lambda line: (said.put(line), lines.append(line)))
    client, handler, threads = None, signal.getsignal(number), set(threading.enumerate())
    asking, ending = threading.Thread(target=ask), threading.Thread(target=end_once_asked)
    ending.start()
    server.run(Settings(port=0, decoders=1), locator)
    ending.join()
    asking.join()
    assert answers[0][0] == 200 and answers[0][1]["matches"][0]["name"] == "b/6.png"
    (following,) = (line for line in lines if line.startswith("next: "))
    assert f"curl --data-binary @IMAGE.jpg 'http://127.0.0.1:{client.port}/locate?top=3'" in following
    assert signal.getsignal(number) == handler and not set(threading.enumerate()) - threads
    with pytest.raises(ConnectionRefusedError):
        client("GET", "/health")


def test_a_port_that_is_taken_is_said_in_a_line(locator):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"cannot listen at 127.0.0.1:{port}.*--port"):
            server.run(Settings(port=port), locator)


def test_a_host_of_another_machine_is_said_in_a_line():
    with pytest.raises(UserError, match=r"cannot listen at 192\.0\.2\.1:0"):
        server.listen("192.0.2.1", 0)


def test_a_server_that_is_not_safe_does_not_start(locator):
    with pytest.raises(UserError, match="--token"):
        server.run(Settings(host="0.0.0.0"), locator)
