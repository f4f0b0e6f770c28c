"""Which flags each mode reads: what --help shows, what is refused, and what is accepted without effect."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_options import help_by, parse, refusal

from main import main
from vpr.cli.app import module_of
from vpr.cli.flags import MODES, SETTINGS, all_flags, names
from vpr.common import settings as table

ROOT = Path(__file__).resolve().parents[2]

# The flags of pytorch-NetVlad's main.py, and --device, which --nocuda has become.
TOLERATED = {
    "mode", "batchSize", "cacheBatchSize", "cacheRefreshRate", "nEpochs", "start-epoch", "nGPU", "optim", "lr",
    "lrStep", "lrGamma", "weightDecay", "momentum", "nocuda", "threads", "seed", "dataPath", "runsPath", "savePath",
    "cachePath", "resume", "ckpt", "evalEvery", "patience", "dataset", "arch", "vladv2", "pooling", "num_clusters",
    "margin", "split", "fromscratch", "device",
}  # fmt: skip


def asked_for_help(*words):
    """What is printed, and the top-level modules that were imported."""
    call = [sys.executable, "-X", "importtime", "main.py", *words]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    return done.stdout, {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines()}


def flags_in(text):
    return set(re.findall(r"^  --([A-Za-z0-9_-]+)", text, re.MULTILINE))


FLAGS = {flag.name: flag for flag in all_flags().values()}
ALL_FLAGS = {*FLAGS}


def flags_of_mode(mode):
    return {name for name, flag in FLAGS.items() if mode in flag.modes}


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["--mode=test", "--help"], ["--help-all"]])
def test_help_imports_no_heavy_library(words):
    _, imported = asked_for_help(*words)
    assert "vpr" in imported
    assert not imported & {"torch", "torchvision", "faiss", "scipy", "numpy"}


def test_help_shows_the_modes_and_few_flags(capsys):
    text = help_by(capsys, "--help")
    for mode in MODES:
        assert re.search(rf"^  {mode} +\w", text, re.MULTILINE), mode
    shown = flags_in(text)
    assert {"dataset", "root", "arch", "resume"} <= shown and not {"lr", "pruneRatio", "nprobe"} & shown
    assert "--help-all" in text


@pytest.mark.parametrize(
    ("mode", "there", "absent"),
    [
        ("test", {"split", "explain", "nprobe", "pcaDim", "arch"}, {"lr", "pruneRatio", "quantize", "top", "nPCA"}),
        ("train", {"lr", "margin", "trunkCache", "arch"}, {"split", "panels", "pcaDim", "index"}),
        ("locate", {"top", "json", "utmZone", "split"}, {"lr", "explain", "recallValues"}),
        ("spec", {"dataset", "root", "skipBroken"}, {"arch", "imageSize", "precision"}),
    ],
)
def test_help_of_a_mode_shows_its_flags(mode, there, absent, capsys):
    for words in ([f"--mode={mode}", "--help"], ["--help", "--mode", mode]):
        shown = flags_in(help_by(capsys, *words))
        assert there <= shown and not absent & shown


def test_help_all_shows_every_flag(capsys):
    assert flags_in(help_by(capsys, "--help-all")) == ALL_FLAGS | {"help-all"}


def test_help_of_an_unknown_mode_is_a_user_error():
    assert "tset" in refusal("--mode=tset", "--help")


VALUES = {
    "model": "fast", "placeFolders": "gsv photos",
    "imageSize": "48 64", "channels": "8", "recallValues": "1", "utmZone": "17N", "normalization": "caffe",
    "arch": "vgg16", "minConfidence": "0.5", "maxFalseRate": "0.5",
    "heldOutRegion": "585000 -12.5 100", "near": "40.4,-80,100",
    "box": "40,-81,41,-79", "where": "weather=rain", "ema": "0.5", "engine": "milvus:a.db", "pruneRatio": "0.5",
}  # fmt: skip


def typed(name):
    """A flag with a value that it accepts."""
    flag = FLAGS[name]
    if flag.switch:
        return [f"--{name}"]
    return [f"--{name}", *([next(iter(flag.allowed))] if flag.allowed else VALUES.get(name, "2").split())]


def notes_of(*words):
    """What is said of flags; --mode=distill also says of what its recipe is."""
    return [note for note in parse(*words).notes if not note.startswith("recipe: ")]


def functions_of(module):
    """A module's functions by name, as syntax."""
    tree = ast.parse(Path(importlib.import_module(module).__file__).read_text(encoding="utf-8"))
    return {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def options_in(function):
    """The options that a function names, as `options.lr` or `options.given.get("lr")`."""
    for node in ast.walk(function):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "options.given.get":
            yield ast.literal_eval(node.args[0])
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "options":
            yield node.attr


FIELDS = {settings.__name__: {flag.key for _, flag in table.flags_in(settings)} for settings in SETTINGS}


def options_read(mode):
    """The options that a mode's file reads, and those that functions read which it calls."""
    modules = [f"vpr.cli.{name}" for name in ("specs", "load", "locating", "descriptors")]
    modules += ["vpr.modes.index", "vpr.modes.train"]
    known = {name: function for module in modules for name, function in functions_of(module).items() if name != "run"}
    waiting, seen, found = [*functions_of(module_of(mode)).values()], set(), set()
    while waiting:
        function = waiting.pop()
        found |= set(options_in(function))
        for node in ast.walk(function):
            call = ast.unparse(node) if isinstance(node, ast.Call) else ""
            for settings, fields in FIELDS.items():
                if call.startswith((f"values_of({settings},", f"{settings}.from_flags(")):
                    found |= fields
        if any(isinstance(node, ast.Name) and node.id == "run_flags" for node in ast.walk(function)):
            found |= {*names(lambda flag: flag.kept)}
        called = {node.id for node in ast.walk(function) if isinstance(node, ast.Name)} & known.keys() - seen
        seen |= called
        waiting += [known[name] for name in called]
    return found


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_reads_the_flags_that_the_table_gives_it(mode):
    """By the text of the program, whichever branch is taken. Some flags are settled for all modes before it begins."""
    settled = set()
    for function in [*functions_of("vpr.cli.options").values(), *functions_of("vpr.cli.choice").values()]:
        settled |= set(options_in(function))
        settled |= {node.value for node in ast.walk(function) if isinstance(node, ast.Constant)}
    table = {name.replace("-", "_") for name in flags_of_mode(mode)}
    assert table - options_read(mode) - settled == ({"format"} if mode == "export" else set())  # there is one format
    assert "lr" in options_read("train") and "lr" not in options_read("test"), "otherwise the test sees nothing"


@pytest.mark.parametrize("mode", MODES)
def test_flags_that_a_mode_does_not_read_are_refused_or_named(mode):
    for name in sorted(ALL_FLAGS - flags_of_mode(mode)):
        words = [f"--mode={mode}", *typed(name)]
        if name == "resume":
            continue  # refused by a message of its own
        if name in TOLERATED:
            assert [f"--{name}" in note and f"--mode={mode}" in note for note in notes_of(*words)] == [True], name
        else:
            text = refusal(*words)
            assert f"--{name} has no effect in --mode={mode}" in text, name
            readers = [other for other in MODES if name in flags_of_mode(other)]
            assert readers and text.split("only in ")[1].split(":")[0] == ", ".join(readers), name


def test_flags_of_pytorch_netvlad_are_taken_in_every_mode(capsys):
    """Its users type one line of flags for all modes; what has no effect is said in one line."""
    line = ["--lr=0.01", "--margin=0.2", "--nEpochs=3", "--split=test", "--ckpt=best", "--cachePath=c", "--nocuda"]
    for mode in MODES:
        names = [word[2:].split("=")[0] for word in line]
        idle = {f"--{name}" for name in names if name not in flags_of_mode(mode)}
        notes = notes_of(f"--mode={mode}", *line)
        assert len(notes) == bool(idle)
        assert {word for note in notes for word in note.split(": ")[1].split(", ")} == idle
    assert not parse("--mode=train", "--lr=0.01", "--nEpochs=3").notes


def test_what_has_no_effect_is_printed_before_the_work(tmp_path, capsys):
    assert main(["--mode=cluster", f"--root={tmp_path}", "--lr=0.1", "--pooling=max"]) == 2
    printed = capsys.readouterr()
    assert printed.out == "without effect in --mode=cluster: --lr\n" and printed.err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--mode=test", "--pcaDim=64", "--noWhiten"], ["--pcaDim=64", "--noWhiten"]),
        (["--mode=locate", "--pcaDim=64", "--noWhiten", "a.jpg"], ["--pcaDim=64", "--noWhiten"]),
        (["--mode=test", "--saveDescriptors=a", "--loadDescriptors=b"], ["--saveDescriptors=a", "--loadDescriptors"]),
        (["--mode=compare", "--resume", "run"], ["--mode=compare", "--resume"]),
        (["--mode=compare", "run", "--index=Flat"], ["--index", "test, index, locate"]),
        (["--mode=compare", "run", "--saveDescriptors=a.h5"], ["--saveDescriptors", "only in test"]),
        (["--mode=compare", "run", "--loadDescriptors=a.h5"], ["--loadDescriptors", "only in test"]),
        (["--mode=compare", "run", "--explain"], ["--explain", "only in test"]),
    ],
)  # fmt: skip
def test_contradictory_and_idle_flags_are_refused(words, named):
    text = refusal(*words)
    assert all(word in text for word in named), text
