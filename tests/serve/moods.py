"""A decoder that hangs and dies; in a file of its own, which its process imports in no time."""

import os
import time

import numpy as np

from vpr.serve.decoding import READY, Decoded, send


def two_moods(connection):
    """As `decode_for`, but hangs or dies where it is told to; gives its own process's number."""
    connection.send_bytes(READY)
    while True:
        connection.recv()
        data = connection.recv_bytes()
        if data == b"hang":
            time.sleep(60)
        if data == b"die":
            os._exit(11)
        send(connection, Decoded(np.array([os.getpid()]).view(np.uint8), "PNG", None))
