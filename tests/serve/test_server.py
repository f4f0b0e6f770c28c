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


def test_it_ends_in_seconds_though_reranking_has_long_to_go(locator, images, monkeypatch):
    """What is underway is answered 503, and no index is trained anew."""
    said, looked, locate, answers, finished = SimpleQueue(), threading.Event(), locator.answer_each, [], []

    def for_ever(*rest):
        while len(rest) > 2:
            looked.set()
            time.sleep(0.01)
            rest[2]()
        return locate(*rest)

    def ask(client, image, query):
        answers.append(client.locate(image, query, timeout=60))

    def end_once_asked():
        while (found := re.fullmatch(r"listening at http://127\.0\.0\.1:(\d+) .*", said.get(timeout=60))) is None:
            pass
        client, image = Client(int(found[1])), as_bytes(images[1][6])
        queries = ("?rerank=200&session=a", "?rerank=200&session=a", "?rerank=200")
        asking = [threading.Thread(target=ask, args=(client, image, query)) for query in queries]
        for each in asking:
            each.start()
        assert looked.wait(120)
        began = time.monotonic()
        os.kill(os.getpid(), signal.SIGTERM)
        for each in asking:
            each.join()
        finished.append(time.monotonic() - began)

    monkeypatch.setattr(locator, "answer_each", for_ever)
    monkeypatch.setattr(locator.engine, "finish", lambda *_: finished.append("trained"))
    monkeypatch.setattr(server, "say", said.put)
    threads, ending = set(threading.enumerate()), threading.Thread(target=end_once_asked)
    ending.start()
    server.run(Settings(port=0, decoders=1, stop_seconds=1), locator)
    ending.join()
    assert len(finished) == 1 and finished[0] < 5 and Settings().stop_seconds + 2 <= 10
    assert [(status, told["code"]) for status, told, _ in answers] == [(503, "not_now")] * 3
    assert not set(threading.enumerate()) - threads


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
