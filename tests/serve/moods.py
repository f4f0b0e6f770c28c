"""A decoder that hangs and dies; in a file of its own, which its process imports in no time."""

import os
import time

import numpy as np

from vpr.serve.decoding import READY


def two_moods(connection):
    """As `decode_for`, but hangs or dies where it is told to; gives its own process's number."""
    connection.send(READY)
    while True:
        connection.recv()
        data = connection.recv_bytes()
        if data == b"hang":
            time.sleep(60)
        if data == b"die":
            os._exit(11)
        connection.send(((8,), "PNG", None))
        connection.send_bytes(np.int64(os.getpid()).tobytes())
