"""Small data sets on disk, read as the program reads them."""

import pytest

from vpr.common.errors import UserError
from vpr.data.places import PlacesSpec, load_places


def touch(folder, names):
    """Files that need not be decoded: to be found they need not be images."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"some")


def load(root, dataset, split="test"):
    return load_places(PlacesSpec(dataset, root), split)


def refusal(read, *arguments):
    """The one line that reading gives."""
    with pytest.raises(UserError) as caught:
        read(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def hits(places):
    """For each query the indices of its positives."""
    return [found.tolist() for found in places.positives()]
