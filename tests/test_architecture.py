"""What the pages and docstrings say of the tree, and the sizes that keep it readable, against the tree itself."""

import ast
import re
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]
PACKAGES = sorted(path.parent for top in ("vpr", "toycity") for path in (REPO / top).rglob("__init__.py"))
PAGE = (REPO / "docs" / "architecture.md").read_text(encoding="utf-8")
MOST_FILES, MOST_LINES, LONGEST_FUNCTION = 15, 300, 50


def name_of(package: Path) -> str:
    return package.relative_to(REPO).as_posix()


def listed(package: Path) -> list[str]:
    """The modules and packages that a package's docstring lists: the first words of its indented lines or table."""
    text = ast.get_docstring(ast.parse((package / "__init__.py").read_text(encoding="utf-8"))) or ""
    found = []
    for line in text.splitlines()[1:]:
        if names := re.match(r"((?:\w+(?:\.py|/)(?:, )?)+)  +\S", line):
            found += names[1].split(", ")
    return found


def module_files(package: Path) -> list[str]:
    """Its files and its packages, as a docstring lists them."""
    inside = [f"{path.name}/" for path in package.iterdir() if (path / "__init__.py").exists()]
    return inside + [path.name for path in package.glob("*.py") if path.name != "__init__.py"]


@pytest.mark.parametrize("package", PACKAGES, ids=name_of)
def test_a_package_lists_its_files_each_once(package):
    assert sorted(listed(package)) == sorted(module_files(package))


@pytest.mark.parametrize("package", PACKAGES, ids=name_of)
def test_a_package_is_small_enough_to_be_read(package):
    assert len(list(package.glob("*.py"))) - 1 <= MOST_FILES
    for path in package.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= MOST_LINES, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno - node.lineno < LONGEST_FUNCTION, f"{path}: {node.name}"


def test_the_page_is_short_and_names_what_is_there():
    assert len(PAGE.splitlines()) <= 80
    named = re.findall(r"`((?:vpr|toycity|tests|benchmarks|campaigns|docs|examples)/[\w/.]*|\w+\.py)`", PAGE)
    assert len(named) > 20
    for name in named:
        assert (REPO / name).exists(), name
    for package in PACKAGES:
        if package.parent == REPO / "vpr":
            assert f"`{name_of(package)}/" in PAGE, package


def test_the_page_has_the_layers_that_are_enforced():
    settings = (REPO / "pyproject.toml").read_text(encoding="utf-8")
    layers = re.findall(r'"(.+)"', re.search(r"^layers = \[\n(.*?)^\]", settings, re.S | re.M)[1])
    said = " > ".join(layer.replace(" | ", ", ") for layer in layers)
    for name in ("docs/architecture.md", "CONTRIBUTING.md"):
        text = re.sub(r"\s+", " ", (REPO / name).read_text(encoding="utf-8"))
        assert said in text, name
