"""Names of timm's networks as they are typed: sizes may be left out where only one network is meant."""

import json

import pytest

from vpr.cli.options import flags_of, parse_options, run_flags
from vpr.common.errors import UserError


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("swin_tiny", "swin_tiny_patch4_window7_224"),
        ("swin_tiny.ms_in1k", "swin_tiny_patch4_window7_224"),
        ("deit_tiny", "deit_tiny_patch16_224"),
        ("swin_small", "swin_small_patch4_window7_224"),
        ("convnext_tiny", "convnext_tiny"),  # a name itself, though convnext_tiny_hnf is one, too
    ],
)
def test_sizes_that_a_name_lacks_are_added_where_timm_has_one_such_network(typed, name, tmp_path, capsys):
    options = parse_options(["--mode=train", f"--arch={typed}", "--fromscratch"][: 2 if "." in typed else 3])
    assert options.arch == run_flags(options, "fp32")["arch"] == name
    assert (
        options.notes == [] if typed == name else [f"--arch={typed.split('.')[0]}: timm's only such network is {name}"]
    )
    (tmp_path / "flags.json").write_text(json.dumps(flags_of(options)))
    assert parse_options(["--mode=test", f"--resume={tmp_path}", f"--arch={typed.split('.')[0]}"]).arch == name


@pytest.mark.parametrize("typed", ["swin_base", "vit_small_patch14", "swin", "swin_tiny_patch4_window", "convnext"])
def test_a_name_that_sizes_alone_do_not_complete_is_refused_with_longer_ones(typed):
    """Two networks differ in their sizes alone; what is missing is no size."""
    with pytest.raises(UserError, match=f"--arch={typed} is neither .* nearest are {typed}"):
        parse_options(["--mode=test", f"--arch={typed}"])
