"""A flag is one field of a settings' dataclass: all else that the command line knows of it is read from there."""

import json
from dataclasses import dataclass

import pytest
from test_options import help_by, parse, refusal

from vpr.cli import flags
from vpr.cli.options import command_line, flags_of, run_flags
from vpr.common.errors import UserError
from vpr.common.settings import MODEL, RESUMED, RUN, TRAINING, count, flag, flags_in, quantity, values_of
from vpr.models.spec import ModelSpec
from vpr.runs.run import create_run
from vpr.training.rules import TrainingRules

ABOUT = {"group": "train", "modes": ("train", "prune"), "type": quantity}


@dataclass(frozen=True)
class FocalRules(TrainingRules):
    focal: float = flag(1.5, "how much hard tuples count", name="focal-power", **ABOUT, kept=TRAINING, clusters=True)


def settings_with(added, monkeypatch):
    """The program with one dataclass more; of one that stands in for another, its fields."""
    others = [one for one in flags.SETTINGS if one is TrainingRules or not issubclass(added, one)]
    monkeypatch.setattr(flags, "SETTINGS", (*(one for one in others if not issubclass(added, one)), added))


@pytest.fixture
def with_focal(monkeypatch):
    settings_with(FocalRules, monkeypatch)


def run_of(options, tmp_path):
    state = {"flags": {}, "state_dict": {}, "position": {}}
    return create_run(tmp_path / "runs", "vgg16", "netvlad", run_flags(options, "fp32"), "checkpoints", state)


def changed(run, **stored):
    path = run / "flags.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **stored}))
    return run


def test_a_field_is_a_flag_with_help_default_and_modes(with_focal, capsys):
    line = "how much hard tuples count (default: 1.5)"
    for words in (["--help-all"], ["--mode=train", "--help"], ["--mode=prune", "--help"]):
        text = help_by(capsys, *words)
        assert "--focal-power FOCAL_POWER" in text and line in " ".join(text.split())
    for words in (["--help"], ["--mode=test", "--help"]):
        assert "--focal-power" not in help_by(capsys, *words)
    assert parse("--mode=train").focal_power == 1.5
    options = parse("--mode=train", "--focal-power=2.5", "--margin=0.2")
    assert options.given == {"mode": "train", "focal_power": 2.5, "margin": 0.2}
    rules = FocalRules(**values_of(FocalRules, vars(options)))
    assert (rules.focal, rules.margin, rules.recall_values) == (2.5, 0.2, (1, 5, 10, 20))
    text = refusal("--mode=test", "--focal-power=2.5")
    assert text == (
        "--focal-power has no effect in --mode=test, only in train, prune: drop it, or see --mode=test --help"
    )
    assert "found '-1', wanted a finite number of at least 0" in refusal("--mode=train", "--focal-power=-1")
    assert command_line(options, "cluster", flags.names(lambda flag: flag.clusters)).endswith(" --focal-power=2.5")


def test_a_run_stores_the_flag_and_a_resumed_one_gets_it_back(with_focal, tmp_path):
    run = run_of(parse("--mode=train", "--focal-power=2.5"), tmp_path)
    assert json.loads((run / "flags.json").read_text())["focal_power"] == 2.5
    assert parse("--mode=train", f"--resume={run}").focal_power == 2.5
    text = refusal("--mode=train", f"--resume={run}", "--focal-power=2")
    assert "--focal-power=2.0 contradicts" in text and "focal_power=2.5" in text
    for nonsense in (-1.0, "sharp", True, [2.5], None, float("nan")):
        text = refusal("--mode=test", f"--resume={changed(run, focal_power=nonsense)}")
        assert f"{run / 'flags.json'} has focal_power={nonsense!r}, which --focal-power cannot be" in text


@pytest.mark.parametrize(
    "name", ["dataset", "pooling", "rerankBy", "optim", "arch", "num_clusters", "imageSize", "root"]
)
def test_a_stored_flag_may_be_of_any_kind_and_is_named(name, tmp_path):
    run = run_of(parse("--mode=train"), tmp_path)
    for nonsense in ([], {}, [[]], {"a": 1}, [None], -(2**70), 1e400, "\0"):
        text = refusal("--mode=test", f"--resume={changed(run, **{name: nonsense})}")
        assert f"has {name}=" in text and f"--{name} cannot be" in text


def test_a_flag_that_is_gone_is_named(tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        settings_with(FocalRules, patched)
        run = run_of(parse("--mode=train"), tmp_path)
    assert "'focal_power', which is no flag of this program" in refusal("--mode=train", f"--resume={run}")


@pytest.mark.parametrize(
    ("kept", "restored_in", "fixed_in"),
    [
        (MODEL, {"train", "prune", "test"}, {"train", "prune", "test"}),
        (TRAINING, {"train", "prune", "test"}, {"train"}),
        (RUN, {"train", "prune", "test"}, set()),
        (RESUMED, {"train", "prune"}, set()),
        ("", set(), set()),
    ],
)
def test_what_a_resumed_run_gets_back(kept, restored_in, fixed_in, tmp_path, monkeypatch):
    about = {"group": "run", "modes": flags.MODES, "type": count, "kept": kept}

    @dataclass(frozen=True)
    class Further:
        depth: int = flag(1, "how deep", **about)

    settings_with(Further, monkeypatch)
    run = run_of(parse("--mode=train", "--depth=3"), tmp_path)
    for mode in ("train", "prune", "test"):
        words = [f"--mode={mode}", f"--resume={run}"]
        assert parse(*words).depth == (3 if mode in restored_in else 1), mode
        if mode in fixed_in:
            assert "--depth=4 contradicts" in refusal(*words, "--depth=4")
        else:
            assert parse(*words, "--depth=4").depth == 4


@pytest.mark.parametrize(("added", "refused"), [(True, True), (False, False)])
def test_a_run_of_before_a_flag_has_its_default(added, refused, tmp_path, monkeypatch):
    @dataclass(frozen=True)
    class Further:
        depth: int = flag(1, "how deep", group="model", modes=flags.MODES, type=count, kept=MODEL, added=added)

    run = run_of(parse("--mode=train"), tmp_path)
    settings_with(Further, monkeypatch)
    assert parse("--mode=test", f"--resume={run}").depth == 1
    if refused:
        assert "depth=1" in refusal("--mode=test", f"--resume={run}", "--depth=2")
    else:
        assert parse("--mode=test", f"--resume={run}", "--depth=2").depth == 2


def test_no_two_fields_have_one_spelling():
    found = [one.name for settings in flags.SETTINGS for _, one in flags_in(settings)]
    assert len(found) == len({name.lower() for name in found})


def test_the_options_of_a_model_are_those_of_its_spec():
    words = ["--arch=alexnet", "--channels", "8", "8", "--num_clusters=7", "--clusterDim=3", "--weights=none"]
    options = parse("--mode=train", *words)
    spec = ModelSpec.from_flags(flags_of(options))
    assert (spec.channels, spec.clusters, spec.cluster_dim, spec.from_scratch) == ((8, 8), 7, 3, True)
    assert spec.flags() == {name: getattr(options, name) for name in flags.names(lambda flag: flag.kept == MODEL)}
    assert ModelSpec.from_flags(spec.flags()).flags() == spec.flags()


@pytest.mark.parametrize(
    ("stored", "wanted"),
    [
        ({"num_clusters": 1}, "a whole number of at least 2"),
        ({"num_clusters": None}, "a whole number of at least 2"),
        ({"vladv2": "no"}, "true or false"),
        ({"pooling": "mean"}, "one of netvlad, max, avg, gem, cls"),
        ({"vladAssign": "firm"}, "one of soft, hard"),
        ({"clusterDim": 0}, "a whole number of at least 1, or none"),
        ({"channels": [8, 0]}, "several, each a whole number of at least 1, or none"),
        ({"channels": []}, "several, each a whole number of at least 1, or none"),
        ({"cut": 1.5}, "a whole number, or none"),
        ({"facet": "colour"}, "one of token, key, query, value, or none"),
        ({"weights": 3}, "a text, or none"),
        ({"normalization": "1,2"}, "a mean colour R,G,B such as 123.68,116.779,103.939, or none"),
    ],
)
def test_a_model_of_nonsense_is_refused(stored, wanted):
    ((name, value),) = stored.items()
    with pytest.raises(UserError) as caught:
        ModelSpec.from_flags({"arch": "alexnet", **stored})
    text = str(caught.value)
    assert text.startswith(f"a model cannot have {name}={str(value)!r}, wanted ") and wanted in text


def test_a_model_has_no_layer_that_its_backbone_lacks():
    text = "--trainFrom=conv9 is no layer of alexnet: choose from conv1, conv2, conv3, conv4, conv5"
    with pytest.raises(UserError, match=text):
        ModelSpec.from_flags({"arch": "alexnet", "trainFrom": "conv9"})
    assert text in refusal("--mode=train", "--arch=alexnet", "--trainFrom=conv9")


def test_what_help_reads_without_torch_is_what_the_program_computes_with():
    from vpr.cli.settings import LOCAL_DIM
    from vpr.models import local_projection
    from vpr.retrieval.matching import SCORES
    from vpr.retrieval.rules import LOCAL_WEIGHTS

    assert local_projection.LOCAL_DIM == LOCAL_DIM
    assert LOCAL_WEIGHTS.keys() == SCORES.keys()
