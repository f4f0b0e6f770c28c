"""What the project says of itself in several files agrees, and what it tells readers to type is understood."""

import ast
import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # comes with pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"torch", "torchvision", "faiss", "scipy", "numpy", "h5py", "matplotlib", "PIL", "onnx"}


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def required(file):
    """The requirements of a file, without comments."""
    lines = [line.split("#")[0].strip() for line in (ROOT / file).read_text().splitlines()]
    return sorted(line for line in lines if line)


def in_fresh_python(code, *path, cwd=ROOT):
    """Modules that are loaded after `code`, in a new process with `path` before the installed packages."""
    set_up = f"import sys; sys.path[:] = {[*map(str, path)]!r} + [p for p in sys.path if p]"
    show = "import json; print(json.dumps(sorted(sys.modules)))"
    call = [sys.executable, "-I", "-c", f"{set_up}\n{code}\n{show}"]
    done = subprocess.run(call, cwd=cwd, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_dependencies_agree_with_the_requirements_files(project):
    assert sorted(project["dependencies"]) == required("requirements.txt")
    extras = {name: sorted(packages) for name, packages in project["optional-dependencies"].items()}
    assert extras == {
        name: required(f"requirements-{name}.txt")
        for name in ("deploy", "serve", "opencv", "keypoints", "milvus", "dev")
    }


def test_there_is_one_version(project):
    version = project["version"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    released = re.findall(r"^## \[(\d[^\]]*)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert released[0] == version
    numbers = [tuple(map(int, one.split("."))) for one in released]
    assert numbers == sorted(set(numbers), reverse=True)


def test_the_command_is_a_function_that_helps_without_heavy_libraries(project):
    module, function = project["scripts"]["vpr"].split(":")
    code = f"""
from {module} import {function} as start
try:
    start(["--help"])
except SystemExit as done:
    assert done.code == 0
else:
    raise AssertionError("--help did not end the program")
"""
    loaded = in_fresh_python(code, ROOT)
    assert module in loaded
    assert not loaded & HEAVY


def test_the_layer_and_the_spec_reader_can_be_copied_into_any_project(tmp_path):
    for name in ("netvlad", "pittsburgh"):
        shutil.copy(ROOT / f"{name}.py", tmp_path)
        loaded = in_fresh_python(f"import {name}", tmp_path, cwd=tmp_path)
        assert name in loaded and not any(module.split(".")[0] == "vpr" for module in loaded), name
        # Imports inside functions are not run by that.
        tree = ast.parse((ROOT / f"{name}.py").read_text())
        imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        ours = {file.stem for file in ROOT.glob("*.py")} | {"vpr", "benchmarks", "tests"}
        assert not {module.split(".")[0] for module in imported} & ours, name


def test_every_package_is_one_that_is_installed_and_checked():
    """A folder without `__init__.py` would be left out of `pip install` and of the layers in pyproject.toml."""
    for file in (ROOT / "vpr").rglob("*.py"):
        assert (file.parent / "__init__.py").is_file(), file.parent
    for page in (file for ending in ("html", "css", "js") for file in (ROOT / "vpr").rglob(f"*.{ending}")):
        patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["vpr"]
        assert str(page.relative_to(ROOT / "vpr")) in patterns, page
    assert (ROOT / "vpr" / "py.typed").is_file()


def commands():
    """The words after the program's name, for every command that readers are told to type."""
    told = []
    started = re.compile(r"^\s*(?:\$ )?(?:[\w./]*python main\.py|torchrun .*?main\.py|vpr)\s+(-.*)$")
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md"]
    for page in pages:
        text = page.read_text().replace("\\\n", " ")
        for line in text.splitlines():
            found = started.match(line)
            if found:
                told.append(pytest.param(shlex.split(found[1], comments=True), id=f"{page.name}: {found[1][:60]}"))
    return told


def test_the_readme_tells_readers_what_to_type():
    told = [param.values[0] for param in commands() if param.id.startswith("README.md")]
    assert {"--mode=cluster", "--mode=train", "--mode=test"} <= {word for words in told for word in words}


@pytest.mark.parametrize("words", commands())
def test_commands_in_the_documentation_are_understood(words, tmp_path, monkeypatch):
    """An exported file stands for the run that it was made from."""
    from vpr.cli.app import module_of
    from vpr.cli.options import flags_of, parse_options

    made_by = ["--mode=train", "--arch=vgg16", "--root=places"]
    for run in ("RUN", "2026-01-01_00-00-00.000_vgg16_netvlad"):
        folder = tmp_path / "runs" / run
        folder.mkdir(parents=True)
        (folder / "flags.json").write_text(json.dumps(flags_of(parse_options(made_by))))
    monkeypatch.chdir(tmp_path)
    words = [re.sub(r"(runs/RUN)?/?[\w-]*\.onnx$", "runs/RUN", word) for word in words]
    if "--help" in words or "--help-all" in words:
        with pytest.raises(SystemExit) as done:
            parse_options(words)
        assert done.value.code == 0
        return
    mode = next(word.split("=")[1] for word in words if word.startswith("--mode="))
    assert parse_options(words).mode == mode
    assert importlib.util.find_spec(module_of(mode))
