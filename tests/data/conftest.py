"""What several tests of reading images use."""

import pytest
from drawing import noise, save


@pytest.fixture
def truncated(tmp_path):
    path = save(tmp_path / "half.jpg", noise(96, 128))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path
