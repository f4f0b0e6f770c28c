"""Files of local descriptors: whole or not there, and never mistaken for those of another file."""

import numpy as np
import pytest

from vpr.common.errors import UserError
from vpr.descriptors.local_file import local_file, local_path, remove_local, require_dim
from vpr.descriptors.local_maps import LocalMaps
from vpr.models.local_projection import LocalProjection

GRID = (1, 2)
ROWS = np.array([[1, 2, 3], [4, 5, 6]], np.int8)


def test_what_fails_in_the_block_leaves_the_earlier_file(tmp_path):
    path = tmp_path / "index.h5"
    with local_file(path) as sink:
        sink.write([(ROWS, GRID)])
    for failure in (UserError("no such index"), KeyboardInterrupt()):
        with pytest.raises(type(failure)), local_file(path) as sink:
            sink.write([(ROWS, GRID), (ROWS, GRID)])
            raise failure
        assert [file.name for file in tmp_path.iterdir()] == ["index.local"]
        assert (tmp_path / "index.local").read_bytes() == bytes([1, 2, 3, 4, 5, 6])


@pytest.mark.parametrize("failure", [RuntimeError("shapes differ"), BrokenPipeError("nobody reads")])
def test_other_errors_are_not_said_to_be_of_writing(tmp_path, failure):
    with pytest.raises(type(failure), match=str(failure)), local_file(tmp_path / "index.h5") as sink:
        sink.write([(ROWS, GRID)])
        raise failure
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_said(tmp_path, monkeypatch):
    """/dev/full takes no byte; what is written reaches it when the file is closed."""
    with (
        pytest.raises(UserError, match=r"cannot write .*index\.local \(.*No space left"),
        local_file(tmp_path / "index.h5") as sink,
    ):
        sink._file.close()
        sink._file = open("/dev/full", "wb")  # noqa: SIM115 - the sink closes it
        sink.write([(ROWS, GRID)])
        sink.finished()
    assert not list(tmp_path.iterdir())


def test_each_file_has_local_descriptors_of_its_own(tmp_path):
    """Also where names differ behind a dot alone."""
    names = ["index.h5", "city.day", "city.night", "city"]
    assert len({local_path(tmp_path / name) for name in names}) == len(names)
    assert local_path(tmp_path / "index.h5") == tmp_path / "index.local"


def test_local_descriptors_of_an_earlier_file_are_removed_aloud(tmp_path, capsys):
    path = tmp_path / "index.h5"
    remove_local(path)
    assert capsys.readouterr().out == ""
    (tmp_path / "index.local").write_bytes(b"x")
    remove_local(path)
    assert not (tmp_path / "index.local").exists() and "removed" in capsys.readouterr().out


def test_other_dimensions_than_were_named_are_refused(tmp_path):
    """All that a backbone has are as many as can be had of more."""
    maps = LocalMaps(np.zeros((2, 3), np.int8), np.array([GRID], np.int32), np.array([0, 2]))
    wide, whole = (LocalProjection(np.zeros(dim), np.eye(dim)[:3]) for dim in (5, 3))
    for projection in (None, wide, whole):
        require_dim(tmp_path, maps, projection, None)
        require_dim(tmp_path, maps, projection, 3)
    require_dim(tmp_path, maps, whole, 64)
    for projection, wanted in ((None, 64), (wide, 64), (wide, 2), (whole, 2)):
        with pytest.raises(UserError, match=f"of 3 dimensions, found --localDim={wanted}"):
            require_dim(tmp_path, maps, projection, wanted)
