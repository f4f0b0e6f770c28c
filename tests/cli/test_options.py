"""The command line: names, defaults, bad values, and what a resumed run brings along."""

import json
import re
import shlex
from pathlib import Path

import pytest

from main import main
from vpr.cli.flags import CLUSTER_FLAGS, all_flags
from vpr.cli.options import command_line, flags_of, parse_options
from vpr.common.errors import UserError
from vpr.training.recipes import RECIPES

ROOT = Path(__file__).resolve().parents[2]

# Flags that users of pytorch-NetVlad type, which stay as they are.
# name: a value that is not the default, as typed and as read; None where the flag stands alone
ACCEPTED = {
    "mode": ("cluster", "cluster"), "batchSize": ("2", 2), "cacheBatchSize": ("5", 5), "cacheRefreshRate": ("0", 0),
    "nEpochs": ("7", 7), "start-epoch": ("3", 3), "nGPU": ("1", 1), "optim": ("ADAM", "ADAM"), "lr": ("0.5", 0.5),
    "lrStep": ("9", 9), "lrGamma": ("0.25", 0.25), "weightDecay": ("0", 0.0), "momentum": ("0.5", 0.5),
    "nocuda": (None, True), "threads": ("0", 0), "seed": ("9", 9), "dataPath": ("elsewhere", "elsewhere"),
    "runsPath": ("elsewhere", "elsewhere"), "savePath": ("elsewhere", "elsewhere"),
    "cachePath": ("elsewhere", "elsewhere"), "ckpt": ("best", "best"), "evalEvery": ("3", 3), "patience": ("0", 0),
    "dataset": ("tokyo247", "tokyo247"), "arch": ("alexnet", "alexnet"), "vladv2": (None, True),
    "pooling": ("max", "max"), "num_clusters": ("8", 8), "margin": ("0.25", 0.25), "split": ("test", "test"),
    "fromscratch": (None, True),
}  # fmt: skip

# What those users get where they type nothing.
DEFAULTS = {
    "batchSize": 4, "cacheBatchSize": None, "cacheRefreshRate": 1000, "nEpochs": 30, "lrStep": 5, "lrGamma": 0.5,
    "weightDecay": 0.001, "momentum": 0.9, "seed": 123, "patience": 10, "num_clusters": 64, "margin": 0.1,
    "dataPath": "centroids", "runsPath": "runs", "savePath": "checkpoints", "dataset": "pittsburgh", "arch": "vgg16",
    "pooling": "netvlad", "vladv2": False, "optim": "SGD", "start_epoch": 0, "nNeg": 10, "nNegSample": 1000,
    "evalEvery": 1, "split": "val", "recallValues": [1, 5, 10, 20], "panels": 10,
}  # fmt: skip

STORED = {
    "arch": "alexnet", "weights": "IMAGENET1K_V1", "fromscratch": False, "pooling": "netvlad", "num_clusters": 16,
    "dataset": "pittsburgh", "root": "/images/of/the/run", "lr": 0.25, "margin": 0.5, "nEpochs": 7, "evalEvery": 2,
    "threads": 3, "cacheBatchSize": 11, "savePath": "kept",
}  # fmt: skip


def parse(*arguments):
    return parse_options(list(arguments))


def refusal(*arguments):
    with pytest.raises(UserError) as caught:
        parse(*arguments)
    return str(caught.value)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_flags_of_a_training_that_could_be_typed(name):
    """Typed one by one they are the same options; what is typed beside wins, also over what goes against it."""
    values = {flag: value if isinstance(value, list) else [value] for flag, value in RECIPES[name].items()}
    words = [word for flag, several in values.items() for word in (f"--{flag}", *map(str, several))]
    found, typed = parse("--mode=train", f"--recipe={name}"), parse("--mode=train", *words)
    assert {**flags_of(found), "recipe": "paper"} == flags_of(typed)
    assert found.notes == ([f"recipe: {' '.join(words)}"] if words else [])
    assert set(RECIPES[name]) <= {key for key, flag in all_flags().items() if "train" in flag.modes}
    own = parse("--mode=train", f"--recipe={name}", "--lr=0.125", "--longSide=640", "--nEpochs=3")
    assert (own.lr, own.imageSize, own.longSide, own.nEpochs) == (0.125, None, 640, 3)
    assert not any("--lr " in note or "--imageSize" in note for note in own.notes)


PLACES = ["--loss=multi-similarity"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--placeRadius=5"), ([], "--hardEvery=1"), ([], "--alike"), ([], "--views=night"), ([], "--cachedViews=2"),
        (["--recipe=adapt", "--loss=triplet"], "--imagesPerPlace=2"), (PLACES, "--margin=0.2"), (PLACES, "--nNeg=5"),
        (["--recipe=gsv"], "--cacheRefreshRate=0"), (PLACES, "--alike"), (PLACES, "--cachedViews=3"),
        ([], "--placeFolders=a"), ([], "--walk"), ([*PLACES, "--walk"], "--placeRadius=5"),
        ([*PLACES, "--walk"], "--placeDistance=5"), ([*PLACES, "--placeFolders", "a", "b"], "--placeDistance=5"),
        ([*PLACES, "--placeFolders=a"], "--walk"),
    ],
)  # fmt: skip
def test_flags_that_the_loss_does_not_read_are_refused(words, said):
    assert f"{said.partition('=')[0]} has no effect with" in refusal("--mode=train", *words, said)


def test_a_run_keeps_its_recipe_and_older_runs_have_the_papers(tmp_path):
    (tmp_path / "flags.json").write_text(json.dumps(STORED))
    assert parse("--mode=train", f"--resume={tmp_path}").loss == "triplet"
    text = refusal("--mode=train", f"--resume={tmp_path}", "--recipe=adapt")
    assert "--recipe=adapt contradicts" in text and "recipe=paper" in text
    stored = flags_of(parse("--mode=train", "--recipe=adapt", "--batchSize=8"))
    (tmp_path / "flags.json").write_text(json.dumps(stored))
    found = parse("--mode=train", f"--resume={tmp_path}")
    assert (found.batchSize, found.loss, found.trainFrom) == (8, "multi-similarity", "pool")


def test_statistics_of_few_images_at_a_time_are_refused():
    assert "--gradientCache=8 and --trainBatchNorm" in refusal("--mode=train", "--gradientCache=8", "--trainBatchNorm")
    assert parse("--mode=train", "--gradientCache=0", "--trainBatchNorm").trainBatchNorm


def help_by(capsys, *arguments):
    """The help that a command line prints."""
    with pytest.raises(SystemExit, match="0"):
        parse(*arguments)
    return capsys.readouterr().out


@pytest.fixture
def make_run(tmp_path):
    def make(name="2024-01-01_00-00-00.000_alexnet_netvlad", **changes):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        (folder / "flags.json").write_text(json.dumps({**STORED, **changes}))
        return folder

    return make


@pytest.mark.parametrize("name", ACCEPTED)
def test_flag_is_accepted_and_read(name):
    typed, value = ACCEPTED[name]
    words = [f"--{name}"] if typed is None else [f"--{name}={typed}"]
    options = parse(*([] if name == "mode" else ["--mode=train"]), *words)
    read = getattr(options, name.replace("-", "_"))
    assert read == value and type(read) is type(value)
    assert options.given[name.replace("-", "_")] == value


@pytest.mark.parametrize("name", DEFAULTS)
def test_default_value(name):
    value = getattr(parse("--mode=train"), name)
    assert value == DEFAULTS[name] and type(value) is type(DEFAULTS[name])


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["train"], {"lr": 1e-3}),
        (["train", "--dataset=tokyotm"], {"lr": 1e-4}),
        (["train", "--dataset=tokyo247"], {"lr": 1e-4}),
        (["train", "--dataset=pitts250k"], {"lr": 1e-4}),
        (["train", "--dataset=pitts250k", "--lr=0.02"], {"lr": 0.02}),
        (["train", "--arch=vgg16"], {"weights": "IMAGENET1K_FEATURES", "fromscratch": False, "ckpt": "latest"}),
        (["train", "--arch=alexnet"], {"weights": "IMAGENET1K_V1", "fromscratch": False}),
        (["test"], {"ckpt": "best"}),
        (["train", "--weights=imagenet1k_v1"], {"weights": "IMAGENET1K_V1"}),
        (["train", "--nocuda"], {"device": "cpu"}),
        (["test", "--recallValues", "10", "1", "10", "5"], {"recallValues": [1, 5, 10]}),
    ],
)
def test_options_that_follow_from_others(words, wanted):
    options = parse(f"--mode={words[0]}", *words[1:])
    assert {name: getattr(options, name) for name in wanted} == wanted


def test_fromscratch_is_the_same_as_weights_none():
    long, short = parse("--mode=train", "--fromscratch"), parse("--mode=train", "--weights=none")
    assert flags_of(long) == flags_of(short)
    assert long.weights == "none" and long.fromscratch is True
    assert flags_of(parse("--mode=train", "--fromscratch", "--weights=NONE")) == flags_of(long)
    text = refusal("--mode=train", "--fromscratch", "--weights=DEFAULT")
    assert "--fromscratch" in text and "--weights=DEFAULT" in text


def test_every_flag_has_a_help_line(capsys):
    shown = " ".join(help_by(capsys, "--help-all").split())
    for flag in all_flags().values():
        assert flag.help and "\n" not in flag.help, flag.name
        assert re.search(rf" --{flag.name} ([^-][^ ]* )*{re.escape(' '.join(flag.help.split()))}", shown), flag.name


@pytest.mark.parametrize(
    "text",
    [
        "--batchSize=0", "--batchSize=many", "--seed=1.5", "--seed=2147483648", "--threads=-1", "--num_clusters=1",
        "--lrStep=0", "--lr=-0.1", "--lr=nan", "--margin=inf", "--imageSize 480", "--arch=resnet", "--optim=sgdm",
        "--mode=tset", "--batch=3", "--nosuchflag=3", "stray", "--nGPU=2",
        "--nocuda --device=cuda", "--normalization=caffe",
    ],
)  # fmt: skip
def test_bad_value_is_one_line_that_names_it(text, capsys):
    words = text.split()
    assert words[0].split("=")[0] in refusal("--mode=train", *words)
    assert main(["--mode=train", *words]) == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err.startswith("error: ") and output.err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["--near", "-33.8,151.2,500"], "near", (-33.8, 151.2, 500.0)),
        (["--near", "-.5,-151.2,5e2"], "near", (-0.5, -151.2, 500.0)),
        (["--box", "-34,151,-33,152"], "box", (-34.0, 151.0, -33.0, 152.0)),
        (["--box=-34,-71,-33,-70"], "box", (-34.0, -71.0, -33.0, -70.0)),
    ],
)
def test_values_that_begin_with_a_minus_need_no_equals_sign(words, name, value):
    options = parse("--mode=locate", *words, "image.jpg")
    assert getattr(options, name) == value and options.inputs == ["image.jpg"]


def test_several_values_may_begin_with_a_minus():
    options = parse("--mode=test", "--heldOutRegion", "-1e3", "-5.5", "25")
    assert options.heldOutRegion == [-1000.0, -5.5, 25.0]
    assert parse("--mode=test", "--sequence=3", "--speeds", "-1", "-0.5", "1").speeds == [-1.0, -0.5, 1.0]
    assert "--near" in refusal("--mode=locate", "--near", "--json", "image.jpg"), "a flag is no value"
    assert "--near" in refusal("--mode=locate", "--near", "-133.8,151.2,500", "image.jpg")


def test_missing_mode_is_a_user_error():
    assert "--mode=train" in refusal("--batchSize=2")
    assert "--mode=train" in refusal()


def test_resume_takes_over_the_stored_flags(make_run):
    run = make_run()
    options = parse("--mode=train", f"--resume={run}")
    assert options.run == run
    for name in ("arch", "weights", "num_clusters", "dataset", "root", "lr", "margin", "nEpochs", "evalEvery"):
        assert getattr(options, name) == STORED[name], name
    assert options.savePath == "kept"
    assert options.cacheBatchSize == 11
    assert parse("--mode=test", f"--resume={run}").cacheBatchSize is None  # of the training alone
    assert options.batchSize == 4  # not stored


def test_typed_flags_win_over_stored_ones_where_they_may(make_run):
    options = parse("--mode=train", f"--resume={make_run()}", "--nEpochs=50", "--threads=1", "--arch=alexnet")
    assert (options.nEpochs, options.threads, options.arch, options.lr) == (50, 1, "alexnet", 0.25)


def test_without_resume_nothing_is_taken_over(make_run):
    options = parse("--mode=train", f"--runsPath={make_run().parent}")
    assert options.run is None and options.arch == "vgg16" and options.nEpochs == 30


def test_a_run_that_begins_from_another_has_its_flags_but_for_those_typed(make_run):
    run = make_run(longSide=320, lrStep=3)
    options = parse(
        "--mode=train", f"--startFrom={run}", "--lr=0.125", "--clusterDim=8", "--trainFrom=map", "--ckpt=latest"
    )
    assert options.run is None and options.startFrom == str(run)
    assert (options.arch, options.num_clusters, options.clusterDim, options.trainFrom) == ("alexnet", 16, 8, "map")
    assert (options.lr, options.lrStep, options.nEpochs, options.root) == (0.125, 3, 7, STORED["root"])
    assert (options.longSide, options.imageSize, options.start_epoch) == (320, None, 0)
    options = parse("--mode=train", f"--startFrom={run}", "--dataset=pitts250k", "--imageSize", "48", "64")
    assert (options.imageSize, options.longSide) == ([48, 64], None)
    assert (options.root, options.lr) == (parse("--mode=train").root, 0.25), "the images are not the run's"


@pytest.mark.parametrize("source", [{"placeFolders": ["a", "b"]}, {"walk": "once"}])
def test_where_places_of_a_run_that_is_begun_from_come_from_is_of_its_images(make_run, source):
    """It goes where other images are typed, or what it leaves unread."""
    run, (name, value) = make_run(loss="multi-similarity", **source), *source.items()
    begun = ["--mode=train", f"--startFrom={run}"]
    assert getattr(parse(*begun), name) == value
    for words in (["--root=own"], ["--dataset=pitts250k"], ["--placeDistance=50"]):
        assert getattr(parse(*begun, *words), name) is None
    assert getattr(parse("--mode=train", f"--resume={run}"), name) == value


def test_a_recipe_wins_over_the_run_that_is_begun_from_but_not_over_its_model(make_run):
    run = make_run(longSide=320, nNegSample=50)
    options = parse("--mode=train", f"--startFrom={run}", "--recipe=dinov2", "--nEpochs=2")
    assert (options.arch, options.loss, options.lr, options.nEpochs) == ("alexnet", "multi-similarity", 6e-5, 2)
    assert (options.imageSize, options.longSide, options.nNegSample) == ([224, 224], None, 50)
    (told,) = options.notes
    assert "--lr 6e-05" in told and "--arch" not in told


def test_a_size_that_is_typed_takes_the_place_of_the_other_kind_that_a_run_stores(make_run):
    longest = make_run("2024-01-01_a", longSide=320, imageSize=None)
    exact = make_run("2024-01-02_a", imageSize=[48, 64])
    options = parse("--mode=test", f"--resume={longest}", "--imageSize", "24", "32")
    assert (options.imageSize, options.longSide) == ([24, 32], None)
    options = parse("--mode=test", f"--resume={exact}", "--longSide=100")
    assert (options.imageSize, options.longSide) == (None, 100)
    for run, words in ((longest, ["--imageSize", "24", "32"]), (exact, ["--longSide=100"])):
        assert "contradicts" in refusal("--mode=train", f"--resume={run}", *words)


def test_what_a_run_that_is_begun_from_cannot_give_is_refused(make_run):
    run = make_run()
    assert "--startFrom=2 and --resume contradict" in refusal("--mode=train", "--startFrom=2", "--resume")
    assert "or work without --startFrom" in refusal("--mode=train", f"--startFrom={run}", "--num_clusters=8")
    assert "choose from conv1, conv2, conv3, conv4, conv5, pool, map" in refusal(
        "--mode=train", f"--startFrom={run}", "--trainFrom=conv9"
    )
    mapped = make_run("2024-01-02_a", clusterDim=8, trainFrom="map", valSets=["a"], bestBy="a")
    assert "--clusterDim=4 contradicts" in refusal("--mode=train", f"--startFrom={mapped}", "--clusterDim=4")
    pruned = parse("--mode=prune", f"--resume={mapped}")
    assert (pruned.valSets, pruned.bestBy) == (None, "val"), "its first recalls are those of its own split"


def test_bare_resume_takes_the_newest_run(make_run):
    newer = make_run("2024-02-10_09-00-00.000_alexnet_netvlad", num_clusters=32)
    make_run("2024-02-09_10-00-00.000_vgg16_netvlad")
    unfinished = newer.parent / "2025-01-01_00-00-00.000_vgg16_netvlad"  # has no flags: is not a run
    unfinished.mkdir()
    options = parse("--mode=test", f"--runsPath={newer.parent}", "--resume")
    assert options.run == newer and options.num_clusters == 32


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_damaged_flags_file_is_named(make_run, content):
    run = make_run()
    (run / "flags.json").write_text(content)
    assert str(run / "flags.json") in refusal("--mode=test", f"--resume={run}")


@pytest.mark.parametrize(
    ("mode", "word", "named"),
    [
        ("train", "--num_clusters=64", ["--num_clusters=64", "num_clusters=16"]),
        ("test", "--num_clusters=64", ["--num_clusters=64", "num_clusters=16"]),
        ("test", "--arch=vgg16", ["--arch=vgg16", "arch=alexnet"]),
        ("train", "--lr=0.001", ["--lr=0.001", "lr=0.25"]),
        ("train", "--dataset=toy", ["--dataset=toy", "dataset=pittsburgh"]),
        ("train", "--fromscratch", ["none", "IMAGENET1K_V1"]),
        ("train", "--start-epoch=2", ["--start-epoch"]),
        ("cluster", "--seed=9", ["--resume"]),
    ],
)
def test_contradiction_with_a_run_names_both_values(make_run, mode, word, named):
    text = refusal(f"--mode={mode}", f"--resume={make_run()}", word)
    assert all(each in text for each in named), text


def test_resume_says_where_no_run_is(tmp_path):
    for words in (["--resume", f"--runsPath={tmp_path}"], [f"--resume={tmp_path}"]):
        assert str(tmp_path) in refusal("--mode=train", *words)


def test_test_mode_on_another_dataset_leaves_the_runs_images(make_run):
    run = make_run()
    same = parse("--mode=test", f"--resume={run}", "--dataset=pittsburgh")
    assert same.root == STORED["root"]
    other = parse("--mode=test", f"--resume={run}", "--dataset=tokyo247")
    assert other.dataset == "tokyo247" and other.num_clusters == 16
    assert Path(other.root) == ROOT
    assert parse("--mode=test", f"--resume={run}", "--dataset=tokyo247", "--root=/mine").root == "/mine"


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--arch=alexnet"],
        ["--dataset=toy"],
        ["--arch=alexnet", "--dataset=pitts250k", "--num_clusters=8", "--seed=0"],
        ["--fromscratch"],
        ["--weights=none", "--normalization=unit"],
        ["--weights=my weights/it's $HOME.pth", "--normalization=caffe"],
        ["--weights=DEFAULT"],
        ["--root=/with a space/and 'quotes'", "--imageSize", "48", "64", "--dataPath=a;b"],
        ["--device=cpu"],
        ["--nocuda", "--dataset=toy", "--root=here"],
    ],
)
def test_printed_command_gives_the_same_options_when_parsed(words):
    options = parse("--mode=train", *words)
    program, script, *printed = shlex.split(command_line(options, "cluster", CLUSTER_FLAGS))
    assert (program, script, printed[0]) == ("python", "main.py", "--mode=cluster")
    again = parse(*printed)
    for name in ("arch", "dataset", *CLUSTER_FLAGS):
        assert getattr(again, name) == getattr(options, name), name


def test_printed_command_of_a_resumed_run_needs_no_run(make_run):
    options = parse("--mode=train", f"--resume={make_run()}")
    again = parse(*shlex.split(command_line(options, "cluster", CLUSTER_FLAGS))[2:])
    for name in ("arch", "dataset", *CLUSTER_FLAGS):
        assert getattr(again, name) == getattr(options, name), name


def test_printed_command_is_silent_about_defaults():
    line = command_line(parse("--mode=train"), "cluster", CLUSTER_FLAGS)
    assert line == "python main.py --mode=cluster --arch=vgg16"
    line = command_line(parse("--mode=train", "--weights=none"), "cluster", CLUSTER_FLAGS)
    assert line == "python main.py --mode=cluster --arch=vgg16 --fromscratch"


def test_printed_command_carries_the_device():
    assert "--device=cpu" in shlex.split(command_line(parse("--mode=train", "--nocuda"), "cluster", CLUSTER_FLAGS))


def test_version_of_the_pooling_belongs_to_the_run(make_run):
    version_2 = make_run("2024-01-01_00-00-00.000_alexnet_netvlad", vladv2=True)
    assert parse("--mode=test", f"--resume={version_2}").vladv2 is True
    version_1 = make_run("2024-01-02_00-00-00.000_alexnet_netvlad", vladv2=False)
    text = refusal("--mode=test", f"--resume={version_1}", "--vladv2")
    assert "vladv2=True" in text and "vladv2=False" in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--vladAssign=hard", "--pooling=gem"], "--vladAssign=hard is a form of netvlad, not of --pooling=gem"),
        (["--vladAssign=hard", "--vladv2"], "--vladv2 is a soft assignment"),
        (["--clusterDim=16", "--pooling=max"], "--clusterDim=16 maps clusters, --pooling=max has none"),
        (["--clusterDim=0"], "'0'"),
        (["--vladAssign=firm"], "'firm'"),
    ],
)
@pytest.mark.parametrize("mode", ["cluster", "train", "test"])
def test_flags_of_clusters_that_do_not_go_together_are_refused(mode, words, said):
    assert said in refusal(f"--mode={mode}", *words)


def test_assignment_and_projection_belong_to_the_run(make_run):
    run = make_run("2024-01-01_00-00-00.000_alexnet_netvlad", vladAssign="hard", clusterDim=16)
    options = parse("--mode=test", f"--resume={run}")
    assert (options.vladAssign, options.clusterDim) == ("hard", 16)
    earlier = make_run("2024-01-02_00-00-00.000_alexnet_netvlad")
    options = parse("--mode=train", f"--resume={earlier}")
    assert (options.vladAssign, options.clusterDim) == ("soft", None), "runs of before the flags"
    for name, stored in (("vladAssign=hard", "vladAssign=soft"), ("clusterDim=16", "clusterDim=None")):
        text = refusal("--mode=test", f"--resume={earlier}", f"--{name}")
        assert f"--{name} contradicts" in text and stored in text


def test_centroids_are_the_same_for_every_assignment_and_projection():
    options = parse("--mode=test", "--vladAssign=hard", "--clusterDim=16", "--num_clusters=32")
    line = command_line(options, "cluster", CLUSTER_FLAGS)
    assert line == "python main.py --mode=cluster --arch=vgg16 --num_clusters=32"


def test_user_error_is_one_line_whatever_its_text():
    assert str(UserError("first\n  second\r\n\tthird\n")) == "first second third"
