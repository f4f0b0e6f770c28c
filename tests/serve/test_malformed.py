"""Some requests of campaigns/malformed_requests.py: nothing fails, and the next good one is answered."""

import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from asking import as_bytes, serving
from PIL import Image

from campaigns.malformed_kinds import KINDS
from campaigns.malformed_requests import clean, send


def test_malformed_requests_fail_nothing(locator, images, tmp_path, monkeypatch):
    monkeypatch.setattr("vpr.serve.server.HEAD_SECONDS", 0.3)
    monkeypatch.setattr("vpr.serve.uploads.DRAINED_SECONDS", 0.2)
    chance, good = random.Random(5), as_bytes(images[1][6])
    image = as_bytes(Image.open(images[1][3]), "JPEG")
    kinds = [kind for kind in KINDS if kind != "too many pixels"]  # these take seconds to make
    made = [KINDS[kind](chance, image) for kind in kinds * 8]
    limits = {"body_seconds": 0.4, "max_pixels": 1_000_000, "queue": 16, "longest_side": 128}
    plain = []
    with serving(locator, writable=True, uploads=tmp_path / "uploads", **limits) as client:
        before = client.locate(good)[1]["matches"]
        with ThreadPoolExecutor(16) as pool:
            answers = [pool.submit(send, client.port, *one) for one in made]
            while not all(answer.done() for answer in answers):
                plain.append(client.locate(good)[0])
            seen = Counter(answer.result() for answer in answers)
        clean(client.port)
        assert client.locate(good)[1]["matches"] == before
    assert seen.total() == 8 * len(kinds) and plain and set(plain) <= {200, 503}
    assert not [status for status in seen if status[0] == "5" and status != "503"]
    assert {"400", "413", "415", "422"} <= set(seen) and "no answer" not in seen
    assert not [path for path in (tmp_path / "uploads").rglob("*") if path.is_file()]
