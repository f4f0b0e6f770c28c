"""Starting and stopping."""

import os
import signal
import socket
import threading
import time

import pytest
from asking import Client, as_bytes

from vpr.common.errors import UserError
from vpr.serve import server
from vpr.serve.settings import Settings


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_once_all_that_had_begun_is_finished(locator, images, capsys, monkeypatch, number):
    port, found, began, locate = free_port(), [], threading.Barrier(2), locator.answer_each

    def slow(*rest):
        began.wait(120)  # a decoder's process has to begin first
        time.sleep(0.3)
        return locate(*rest)

    monkeypatch.setattr(locator, "answer_each", slow)
    client, image = Client(port), as_bytes(images[1][6])

    def ask():
        asking = threading.Thread(target=lambda: found.append(client.locate(image, timeout=120)))
        try:
            while True:
                try:
                    assert client("GET", "/health")[0] == 200
                    break
                except ConnectionRefusedError:
                    time.sleep(0.01)
            asking.start()
            began.wait(120)
        finally:  # whatever went wrong, the server ends
            os.kill(os.getpid(), number)
        asking.join()

    before = signal.getsignal(number)
    thread = threading.Thread(target=ask)
    thread.start()
    server.run(Settings(port=port, decoders=1), locator)
    thread.join()
    assert found[0][0] == 200 and found[0][1]["matches"][0]["name"] == "b/6.png"
    assert f"listening at http://127.0.0.1:{port}" in capsys.readouterr().out
    assert signal.getsignal(number) == before
    with pytest.raises(ConnectionRefusedError):
        client("GET", "/health")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("batches", "decoder"))]


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
