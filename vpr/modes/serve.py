"""--mode=serve: a model and a database, loaded once, that answer over HTTP where images were taken."""

import argparse
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vpr.cli.load import computing, database_of, model_of
from vpr.cli.locating import database_images, index_wanted, opened_locator
from vpr.cli.specs import device_of, engine_wanted, places_spec, reading
from vpr.common.errors import UserError
from vpr.common.memory import available_cores
from vpr.common.progress import say
from vpr.common.settings import values_of
from vpr.database.location import index_file
from vpr.database.open import load_engine
from vpr.retrieval.calibration_file import NO_PROMISE, calibrated_orders

if TYPE_CHECKING:
    from vpr.serve.settings import Settings

PACKAGES = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")
INSTALL = "python -m pip install -r requirements-serve.txt"
SENT_MEGAPIXELS = 50.0  # of an image that is sent, at most
TOKEN, READ_TOKEN = "VPR_TOKEN", "VPR_READ_TOKEN"  # in the environment


def run(options: argparse.Namespace) -> None:
    """Serve until a signal comes, then finish what has begun."""
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise UserError(f"--mode=serve needs {', '.join(missing)}: {INSTALL}")
    from vpr.serve.server import run as serve

    places = places_spec(options)
    images = database_images(options)
    device = device_of(options)
    loaded, read = model_of(options, device, database=images), reading(options, device)
    model = computing(loaded.model, options, device, len(images.database_files))
    path = Path(options.indexFile) if options.indexFile else index_file(loaded, images, places.root, read.size)
    settings = _settings(options, path, images.database_files)
    settings.require_safe()  # before the database is described
    wanted = index_wanted(options, images, loaded)
    engine = load_engine(engine_wanted(options), path, database_of(options, loaded, images, read), wanted)
    engine.prepare_to_serve(options.writable)
    locator = opened_locator(options, loaded, read, images, engine, path)
    locator.prepare()  # else those who ask with the first re-ranking would wait for it
    say(f"{model.name}; {engine.count()} images of {images.places.name}, searched by {engine.name}")
    if options.maxFalseRate is not None and not calibrated_orders(loaded):
        say(NO_PROMISE)
    try:
        serve(settings, locator)
    finally:
        engine.close()


def _settings(options: argparse.Namespace, path: Path, database: Sequence[Path]) -> "Settings":
    """How the server behaves, beside the index of some image files."""
    from vpr.serve.settings import Settings, limits_for

    values = {**values_of(Settings, vars(options)), **limits_for(database)}
    values |= {"token": token_of(options.token), "read_token": token_of(options.readToken, READ_TOKEN, "--readToken")}
    return Settings(
        **values,
        uploads=path.with_name(f"{path.stem}_added") if options.writable else None,
        max_pixels=int(1e6 * (SENT_MEGAPIXELS if options.maxPixels is None else options.maxPixels)),
        decoders=max(2, available_cores() // 2),
    )


def token_of(named: str | None, variable: str = TOKEN, flag: str = "--token") -> str | None:
    """The word that clients have to send: from a file, or from a variable of the environment; None: none.
    Raises a UserError where the file cannot be read, or is empty."""
    if named is None:
        return os.environ.get(variable) or None
    try:
        token = Path(named).read_text(encoding="utf-8").strip()
        if os.name == "posix" and Path(named).stat().st_mode & 0o044:
            say(f"{flag}: {named} can be read by other users of this machine: chmod 600 {named}")
    except (OSError, UnicodeError) as error:
        raise UserError(f"{flag}: {named} cannot be read ({error}): name a file that holds the word alone") from error
    if not token:
        raise UserError(f"{flag}: {named} is empty: write a word of 8 characters and more into it")
    return token
