"""Requests that no honest client sends, kind by kind; see malformed_requests.py."""

import functools
import io
import random
import struct
import zlib
from collections.abc import Callable

from PIL import Image

from campaigns.fuzz import mutate
from vpr.database.records import record_id

NAMES = (
    "../x.jpg", "/etc/passwd", "..%2f..%2fx.jpg", "a/../../x.jpg", "C:\\x.jpg", "x\0.jpg", "x" * 5000, ".ssh/key.jpg",
    "a//b.jpg", "~/x.jpg", "x.jpg/", "%00", "\u202egpj.jpg", "", "con/x.jpg ",
)  # fmt: skip
QUERIES = (
    "top=-1", "top=1e9", "top=x", "near=1", "near=nan,nan,nan", "near=0,0,1e308", "box=1,2,3,4,5", "box=inf,0,0,0",
    "where=a", "where=" + "a" * 5000, "where=a=b&" * 50, "rerank=99999999999", "agreement=2", "near=" + "9" * 3000,
    "top=5&top=x", "%ff%fe=1", "near=%00,%00,%00", "near=1_0,1,1", "near=%EF%BC%91,2,3", "near=,,", "near=0,0,0",
    "near=90,180,1e9", "box=-90,180,90,-180", "where==", "where=!", "where=%00=%00", "where=a>b<c=d",
    "where=%ed%a0%80=1",
)  # fmt: skip
FORWARDED = ("x-forwarded-for: 192.0.2.7\r\n", "forwarded: for=192.0.2.7\r\n", "authorization: Bearer 12345678\r\n")
TAGS = ("*", 'W/"1"', '"a", W/"b", *', '"' + "a" * 5000, ",,,,", "W/W/W/")
ODD_POSITIONS = (
    "latitude=0&longitude=0", "latitude=91&longitude=0", "latitude=nan&longitude=inf", "easting=1e308&northing=-1e308",
    "latitude=40&easting=1", "latitude=&longitude=", "latitude=1e-320&longitude=1e-320",
)  # fmt: skip
ODD_COLUMNS = (
    "column=a", "column==", "column=%00=%00", "column=a!=b", "column=" + "a" * 300, "column=a=b&" * 40, "column=a=",
    "column=a=1e999", "column=%ed%a0%80=%ff", "column=A=1&column=a=2", "column=image=x",
)  # fmt: skip
SAID = (
    "", "[", "[" * 50_000, "{}", "[null]", '[{"name": 1}]', '[{"name": "x.jpg", "easting": "1", "northing": 2}]',
    '[{"name": "x.jpg", "easting": 1e999, "northing": NaN}]', "[" + "1" * 9000 + "]", '[{"name": "\\ud800"}]',
    '[{"name": "../x.jpg", "latitude": 40, "longitude": -80}]', '[{"name": "x.jpg", "column": "a=b"}]', "x" * 70_000,
    '[{"name": "x.jpg", "column": ["a=b"], "latitude": 91, "longitude": 0}]',
)  # fmt: skip
SESSIONS = ("a", "", "a" * 300, "%00", "%ff", "a&session=b", "a&near=0,0,9", "a&where=a=b", "a&rerank=200", "a&top=-1")
POSITIONS = ("easting=500000&northing=4000000", "easting=0&northing=0")
TWINS = ("twin/a.jpg", "twin/b.jpg", "twin/A.jpg", "twin/a.jpg/b.jpg")
FORM = "multipart/form-data; boundary=b"
# A request as bytes, and the seconds to wait before its second half.
Made = tuple[bytes, float]


def request(
    body: bytes, path: str = "/locate", kind: str = "image/jpeg", method: str = "POST", more: str = "", length: int = -1
) -> bytes:
    """A request's bytes; a length that is given is that which it claims."""
    head = f"{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: {kind}\r\n{more}"
    return f"{head}content-length: {len(body) if length < 0 else length}\r\n\r\n".encode() + body


@functools.cache  # takes a second
def empty_rows(count: int) -> bytes:
    """Rows of 30,000 pixels of one bit, compressed."""
    return zlib.compress(bytes(1 + 30_000 // 8) * count, 9)


def bomb(chance: random.Random) -> bytes:
    """An image of very many pixels in few bytes: a sound PNG, or a JPEG whose header says so."""
    if chance.random() < 0.5:
        stream = io.BytesIO()
        Image.new("L", (64, 64)).save(stream, "JPEG")
        content = bytearray(stream.getvalue())
        at = content.index(b"\xff\xc0")
        content[at + 5 : at + 9] = struct.pack(">HH", 30_000, 30_000)
        return bytes(content)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    side = chance.choice((30_000, 6_900, 2**31 - 1))
    rows = empty_rows(chance.choice((1, 30_000)))
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def damaged(chance: random.Random, image: bytes) -> Made:
    """An image in one of three formats with bytes changed, or cut off."""
    if chance.random() < 0.5:
        stream = io.BytesIO()
        with Image.open(io.BytesIO(image)) as opened:
            opened.save(stream, chance.choice(("PNG", "WEBP", "JPEG")))
        image = stream.getvalue()
    changed = image[: chance.randrange(len(image))] if chance.random() < 0.4 else mutate(image, chance)
    return request(changed), 0


def of_no_image(chance: random.Random, image: bytes) -> Made:
    """Bytes of another kind, under any type."""
    contents = (b"", b"GIF89a" + bytes(99), b"<svg onload=alert(1)>", b"%!PS-Adobe", chance.randbytes(2000), image[:2])
    kinds = ("image/jpeg", "text/html", "application/json", "x" * 300, "", "image/png; charset=" + "a" * 100)
    return request(chance.choice(contents), kind=chance.choice(kinds)), 0


def with_huge_headers(chance: random.Random, image: bytes) -> Made:
    """A head of many kilobytes, or many lines."""
    more = chance.choice(("x-a: " + "a" * 100_000 + "\r\n", "a: b\r\n" * 20_000, "cookie: " + "c" * 20_000 + "\r\n"))
    return request(image, more=more), 0


def of_false_length(chance: random.Random, image: bytes) -> Made:
    """A body that is larger or smaller than it claims, or has no end."""
    length = chance.choice((10**12, 10**30, len(image) // 2, 0, 30_000_000))
    return request(image, length=length), 0


def slow(chance: random.Random, image: bytes) -> Made:
    """The second half comes late or never."""
    return request(image), chance.choice((0.2, 0.5, 99.0))


def broken_form(chance: random.Random, image: bytes) -> Made:
    """A form with bytes changed, cut off, or with very many parts."""
    part = b'--b\r\ncontent-disposition: form-data; name="image"; filename="%s"\r\n\r\n%s\r\n'
    name = chance.choice(NAMES).encode(errors="replace").replace(b"\0", b"%00")[:900]
    body = part % (name, image) + b"--b--\r\n"
    if chance.random() < 0.3:
        body = b'--b\r\ncontent-disposition: form-data; name="x"\r\n\r\n1\r\n' * chance.choice((100, 20_000)) + b"--b--"
    body = mutate(body, chance) if chance.random() < 0.7 else body
    kind = chance.choice(("multipart/form-data; boundary=b",) * 4 + ("multipart/form-data", "multipart/form-data;" * 9))
    return request(body, chance.choice(("/locate", "/locate/batch")), kind), 0


def of_paths(chance: random.Random, image: bytes) -> Made:
    """A name that is none, to add an image by, or to get one."""
    name = "".join(f"%{byte:02x}" for byte in chance.choice(NAMES).encode()) if chance.random() < 0.5 else "..%2fx"
    if chance.random() < 0.3:
        return request(b"", f"/images/{name[:3000]}", method=chance.choice(("GET", "DELETE"))), 0
    return request(image, f"/images?name={name[:9000]}&easting=1&northing=2"), 0


def of_parameters(chance: random.Random, image: bytes) -> Made:
    """Parameters that mean nothing."""
    return request(image, f"{chance.choice(('', '/v1'))}/locate?{chance.choice(QUERIES)}"), 0


def of_no_http(chance: random.Random, image: bytes) -> Made:
    """Bytes that are no request, or one with a byte changed."""
    whole = request(image[:300], path=chance.choice(("/locate", "/" + "a" * 3000, "//", "/%", "*")))
    if chance.random() < 0.2:
        return chance.randbytes(500), 0
    return mutate(whole, chance), 0


def of_conditions(chance: random.Random, image: bytes) -> Made:
    """Conditions over which a regular expression would take hours."""
    count = chance.choice((100, 1100, 12_000))
    text = chance.choice(("+" * count, "a" + "+" * count + "b", "+" * count + "%3D" + "+" * (count // 8), "!" * count))
    return request(image, f"/locate?where={text}"), 0


def of_reranking(chance: random.Random, image: bytes) -> Made:
    """Sound questions that take a thousand times as long as a plain one."""
    query = chance.choice(("rerank=200", "rerank=200&agreement=true", "rerank=100&top=1000", "agreement=true"))
    return request(image, f"/locate?{query}"), 0


def of_long_names(chance: random.Random, image: bytes) -> Made:
    """Names at and beyond what file systems take, reserved ones, and ones in no Unicode, at odd positions."""
    letter = chance.choice(("%E6%BC%A2", "e%CC%81", "a", "%CC%81", "%ff", "%ed%b3%bf", "%F0%9F%98%80"))
    name = chance.choice((letter * chance.choice((1, 66, 84, 96, 100, 190)), "CON", "nul.a", "a%20", "COM%C2%B9"))
    return request(image, f"/images?name={name}.jpg&{chance.choice(('', *ODD_POSITIONS))}"), 0


def of_twins(chance: random.Random, image: bytes) -> Made:
    """One picture under several names, added, replaced, shown and removed; see TWINS."""
    name, shade = chance.choice(TWINS), chance.choice((0, 255))
    if chance.random() < 0.5:
        return removal(name) if chance.random() < 0.7 else (request(b"", address(name), method="GET"), 0)
    stream = io.BytesIO()
    Image.new("RGB", (160, 120), (shade, shade, shade)).save(stream, "JPEG")
    more = chance.choice(("", "", f"&{chance.choice(ODD_COLUMNS)}", "&column=a=b"))
    return request(stream.getvalue(), f"/v1/images?name={name}&{chance.choice(POSITIONS)}{more}"), 0


def address(name: str) -> str:
    """Of a database image."""
    return f"/images/{record_id(name)}"


def removal(name: str) -> Made:
    """A request that removes an image."""
    return request(b"", address(name), method="DELETE"), 0


def of_changes(chance: random.Random, image: bytes) -> Made:
    """Places and columns of images that are there, or not, changed to what means nothing, or in a body."""
    name = chance.choice((*TWINS, "nothing.jpg"))
    query = chance.choice((*ODD_POSITIONS, *ODD_COLUMNS, *POSITIONS, "", "name=../x.jpg"))
    body = chance.choice((b"", b"", b'{"latitude": 40}', image))
    path = chance.choice((address(name), address(name), f"/images/{chance.choice(NAMES).encode().hex()[:3000]}"))
    return request(body, f"/v1{path}?{query}", method="PATCH"), 0


def of_batches(chance: random.Random, image: bytes) -> Made:
    """Several images at once, with what is said of them: too little, too much, or nothing of sense."""
    part = b'--b\r\ncontent-disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'
    images = [chance.choice((image, image[:99], b"")) for _ in range(chance.choice((0, 1, 1, 1, 2, 17)))]
    said = chance.choice(SAID).encode() * chance.choice((1, 1, 2))
    parts = [part % (b"image", b'; filename="x"', each) for each in images]
    return request(b"".join([*parts, part % (b"images", b"", said), b"--b--\r\n"]), "/v1/images/batch", FORM), 0


def of_sessions(chance: random.Random, image: bytes) -> Made:
    """Frames of sessions, at once, broken, late, and of names and parameters that mean nothing."""
    frame = chance.choice((image, image, image[: len(image) // 2], b""))
    return request(frame, f"/v1/locate?session={chance.choice(SESSIONS)}"), chance.choice((0, 0, 0, 0.2))


def of_methods(chance: random.Random, image: bytes) -> Made:
    """Methods that an address does not take, HEAD, and conditions on what is known."""
    method = chance.choice(("HEAD", "HEAD", "OPTIONS", "PUT", "PATCH", "TRACE", "CONNECT", "get", "GET"))
    path = chance.choice(
        ("/", "/health", "/ready", "/map", "/images/1", "/assets/page.js", "/locate", "/nothing", "/v1/images/batch",
         "/v1/ready", "/v1", "/v1/")
    )  # fmt: skip
    more = f"if-none-match: {chance.choice(TAGS)}\r\n" if chance.random() < 0.5 else chance.choice(FORWARDED)
    return request(b"", path, method=method, more=more), 0


KINDS: dict[str, Callable[[random.Random, bytes], Made]] = {
    "damaged image": damaged, "too many pixels": lambda chance, _: (request(bomb(chance)), 0),
    "no image": of_no_image, "huge headers": with_huge_headers, "false length": of_false_length, "slow": slow,
    "broken form": broken_form, "path as a name": of_paths, "parameters": of_parameters, "no HTTP": of_no_http,
    "regular expression": of_conditions, "re-ranking": of_reranking, "long name": of_long_names, "twins": of_twins,
    "methods": of_methods, "changes": of_changes, "batches": of_batches, "sessions": of_sessions,
}  # fmt: skip
