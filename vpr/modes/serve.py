"""--mode=serve: answers over HTTP where images were taken."""

import argparse
import contextlib
import importlib.util
import os
from pathlib import Path

from vpr.artifacts.calibration import StoredCalibration, answer_recipe, data_set, find_calibration
from vpr.artifacts.database_index import Database, index_file
from vpr.artifacts.engines import load_engine
from vpr.artifacts.living_index import LivingIndex
from vpr.artifacts.merging import WantedIndex
from vpr.cli.load import model_of
from vpr.cli.specs import engine_wanted, places_spec, reading
from vpr.common.device import choose_device, device_line
from vpr.common.errors import UserError
from vpr.common.progress import say
from vpr.data.places import load_database, zone_of

PACKAGES = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")
UPLOADS = "uploads"


def run(options: argparse.Namespace) -> None:
    """Load model and index once, and answer until a signal comes."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"--mode=serve needs {', '.join(missing)}: run   python -m pip install -r requirements-serve.txt"
        )
    from vpr.serve.locator import Locator
    from vpr.serve.looking import LocalDescriptors
    from vpr.serve.server import run as run_server
    from vpr.serve.settings import Settings

    token, places = token_of(options), places_spec(options)
    device = choose_device(options.device)
    say(device_line(device))
    database = load_database(places, options.split, split_required="split" in options.given)
    loaded, read = model_of(options, device), reading(options, device)
    model = loaded.model.to_device(device, options.precision)
    path = Path(options.indexFile) if options.indexFile else index_file(loaded, database, places.root)
    settings = Settings(
        host=options.host, port=options.port, token=token, writable=options.writable,
        uploads=path.with_name(f"{path.stem}_{UPLOADS}"), tiles=options.tiles, batch_wait=options.batchWait,
        queue=options.queue, max_megabytes=options.maxMegabytes, max_pixels=int(1e6 * options.maxPixels),
    )  # fmt: skip
    settings.require_safe()
    about = Database(
        loaded, database, places.root, read, zone_of(database.places, places), options.cacheBatchSize
    )  # fmt: skip
    wanted = WantedIndex(options.index, options.given.get("nprobe"), options.seed)
    engine = load_engine(engine_wanted(options), path, about, wanted)

    def calibration(how: str) -> StoredCalibration | None:
        recipe = answer_recipe(loaded.model, loaded.spec, read.size, how)
        return find_calibration(loaded.folder, recipe, data_set(database))

    local = LocalDescriptors(loaded, engine, read, database.base, options.localDim, options.seed)
    locator = Locator(
        loaded, engine, read, database.base, calibration, local, options.rerankBy, options.minConfidence
    )  # fmt: skip
    say(f"{model.name}; {engine.count()} images of {database.places.name}")
    with contextlib.closing(engine):
        run_server(settings, locator)
        if isinstance(engine, LivingIndex) and engine.unmerged:
            engine.finish(edited=True)


def token_of(options: argparse.Namespace) -> str | None:
    """The token in the file of --token, or in the environment."""
    if not options.token:
        return os.environ.get("VPR_TOKEN") or None
    try:
        return Path(options.token).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeError) as error:
        raise UserError(f"--token={options.token} cannot be read ({error}): name a file with one word") from error
