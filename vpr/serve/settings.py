"""How the server behaves; the command line knows nothing else of it."""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vpr.common.errors import UserError
from vpr.common.settings import count, flag, quantity, whole_number

SHORT_TOKEN = 16  # characters
DISTINCT = 5  # characters of a token
WEAK = {"", "password", "passwort", "passw", "qwerty", "qwertyui", "letmein", "changeme", "secret", "admin", "welcome",
        "iloveyou", "football", "sunshine", "princess", "token", "default", "netvlad"}  # fmt: skip
LONGEST_SIDE, LOOKED_INTO = 1280, 50  # pixels; files
LARGE, LARGE_PIXELS = 4, 200_000  # times the database's largest image, or pixels where that is less

_serve = partial(flag, group="serve", modes=("serve",))


@dataclass(frozen=True)
class Settings:
    """How the server behaves. The flags' help says what those fields are that are flags."""

    host: str = _serve("127.0.0.1", "address to listen at; other than this machine's own only with --token")
    port: int = _serve(8000, "port to listen at; 0: any that is free", type=whole_number(0, 65535))
    # The word itself, as that of `read_token`; requests must bring one of them. None: none, on this machine alone.
    token: str | None = _serve(
        None,
        "file with the word that clients have to send as 'Authorization: Bearer ...' (or in the environment: "
        "VPR_TOKEN)",
        metavar="FILE",
    )
    read_token: str | None = _serve(
        None,
        "file with another word, whose clients may ask but neither add nor remove images (or in the environment: "
        "VPR_READ_TOKEN)",
        name="readToken", metavar="FILE",
    )  # fmt: skip
    rate: float = _serve(0.0, "requests a second that a client may make on the average; 0: any number", type=quantity)
    writable: bool = _serve(False, "let clients add and remove images")
    uploads: Path | None = None  # folder that added images are kept in
    # Street tiles of the page's map, see `vpr.serve.page.street_tiles`; None: a plain map.
    tiles: str | None = _serve(
        None,
        "street map behind the page's map, which browsers load from there: osm, or the address of tiles with {z}, "
        "{x}, {y} (default: none)",
        metavar="URL",
    )
    access_log: bool = _serve(False, "print a line of JSON for each request", name="accessLog")
    batch_wait: float = _serve(
        4.0, "milliseconds that a request waits at most for others", name="batchWait", typed=3.0, type=quantity
    )
    batch_size: int = 16  # images that are described at once, at most
    queue: int = _serve(64, "images that wait at most; further ones are answered 503", type=count)
    batch_requests: int = 16  # images in one request
    max_megabytes: float = _serve(20.0, "size of an image file, at most", name="maxMegabytes", type=quantity)
    max_pixels: int = 50_000_000  # of an image, by its header
    # See `limits_for`: pixels to which larger images are shrunk to be described, unless all get one size; None: not.
    longest_side: int | None = None
    large_pixels: int = 1 << 62  # of an image as it is described, above which that is done by turns of clients
    decoders: int = 2  # processes that decode images
    decode_seconds: float = 10.0  # in which an image must be decoded
    body_seconds: float = 20.0  # in which a body must have come
    # In which requests have to end when the server is stopped; those that have not are answered 503.
    stop_seconds: int = 8

    @property
    def long_queue(self) -> int:
        """Questions of one client that may be underway and take long: re-ranking of images that are described first."""
        return max(self.queue // 4, self.batch_requests)

    @property
    def is_local(self) -> bool:
        """Whether only programs of this machine reach the server."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def require_safe(self) -> None:
        """Raise a UserError where anybody in the network could ask, added images not be kept, or tiles are none."""
        if not self.is_local and not self.token:
            raise UserError(
                f"--host={self.host} is reached from other machines: wanted a --token FILE with a word that requests "
                "must bring, or --host=127.0.0.1"
            )
        if self.read_token is not None and self.token is None:
            raise UserError("--readToken has no effect without a --token, which may do more: give that too, or drop it")
        for word in (self.token, self.read_token):
            if word is not None:
                _require_strong(word)
        if self.writable and self.uploads is None:
            raise UserError("a writable server needs a folder for the images that are added")
        if self.tiles is not None:
            from vpr.serve.page import street_tiles  # brings NumPy, which `--help` does without

            street_tiles(self.tiles)

    def notes(self) -> list[str]:
        """What whoever starts the server should know of its safety, a line each."""
        if self.token is None:
            return ["without a token programs of this machine alone are answered, and no proxy"]
        if len(self.token) < SHORT_TOKEN:
            return [f"the token has {len(self.token)} characters: {SHORT_TOKEN} random ones and more cannot be guessed"]
        return []


def _require_strong(token: str) -> None:
    if len(token) < 8 or not token.isascii() or not token.isprintable():
        raise UserError("--token is too short or has characters that no header carries: wanted 8 to 200 of ASCII")
    if len(set(token)) < DISTINCT or token.lower().strip("0123456789!") in WEAK:
        raise UserError("--token is a word that everybody guesses: wanted a random one, as secrets.token_urlsafe makes")


def limits_for(database: Sequence[Path]) -> dict[str, int]:
    """`longest_side` and `large_pixels` of Settings, by some of the image files of a database.

    Larger images than those of the database, and than LONGEST_SIDE, are shrunk: they show no more of the place, and a
    photo of 50 megapixels would hold up all others for as long as a thousand small ones. Those that are large beside
    the database's are described one by one, between the others.
    """
    from vpr.data.reader import largest_size

    height, width = largest_size(database[:: max(1, len(database) // LOOKED_INTO)])
    return {"longest_side": max(LONGEST_SIDE, height, width), "large_pixels": max(LARGE_PIXELS, LARGE * height * width)}
