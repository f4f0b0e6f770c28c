"""What axe-core says of the server's page: that it can be read and used by those who see little or use no mouse."""

import contextlib
from pathlib import Path

import pytest
from frames import framed, posted
from stub_server import answer, match, stub_server

TOKEN = "a token of the test"
JUDGE = Path(__file__).with_name("judge_page.js").read_text(encoding="utf-8")
NOWHERE = dict.fromkeys(("easting", "northing", "zone", "latitude", "longitude"))
UNPLACED = {
    "matches": [{**match(n, 0.5), **NOWHERE} for n in (1, 2)], "confidence": None, "confidence_kind": "unknown, ..."
}  # fmt: skip
ANSWERS = {
    "right with a probability of over 99 %": answer([5, 6, 3], confidence=0.9999),
    "I don't know this place (right with a probability of 12 %)": answer([2, 1], refused=True, confidence=0.12),
    "I don't know this place (right with a probability of under 1 %)": answer([2, 1], confidence=0.001),
    "most similar (score 0.31)": answer(
        [5, 6], confidence=0.31, confidence_kind="1 - ..., no probability", usual_distance=None
    ),
    "most similar": answer([], **UNPLACED, usual_distance=None),
    "most similar (distance 0.50; random images: 1.25)": answer([], **UNPLACED, usual_distance=1.25),
}
VIEWS = [(width, scheme) for width in (390, 1280) for scheme in ("light", "dark")]


@pytest.mark.slow
def test_nothing_is_in_anybodys_way(browse, axe):
    """Without answers and with one of each kind, light and dark, narrow with a token and wide without."""
    answers, drive = [*((200, each) for each in ANSWERS.values()), (413, {"error": "large"})], (axe + JUDGE).encode()
    with contextlib.ExitStack() as stack:
        tokens = [TOKEN if width == 390 else None for width, _ in VIEWS]
        servers = [stack.enter_context(stub_server(answers, token, drive)) for token in tokens]
        pages = [
            (f"{server.address}#{scheme},{len(answers)}", width)
            for server, (width, scheme) in zip(servers, VIEWS, strict=True)
        ]
        servers[0].frames = framed(pages)
        seen = posted(browse(f"{servers[0].address}frames", seconds=60))
    assert not [each["error"] for each in seen if "error" in each]
    assert {(each["width"], each["scheme"]) for each in seen} == {*VIEWS}
    for each in seen:
        assert set(each["sure"]) == {*ANSWERS, "large"}
        assert each["empty"] + each["answered"] == [], (each["width"], each["scheme"])
        assert each["lines"] == {"unknown": ["none", "none"], "others": ["inline"] * 4}, "unless the place is not known"
        assert each["token"] == ([] if each["width"] == 390 else None)
