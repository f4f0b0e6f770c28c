"""The notebook runs from top to bottom, on the small city."""

import base64
import json
from pathlib import Path

import nbclient
import nbformat
import pytest

import main

NOTEBOOK = Path(main.__file__).parent / "vgg16_pretrained_netvlad.ipynb"


def test_notebook_is_stored_without_results():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None


@pytest.mark.slow
def test_notebook_shows_the_recalls_that_it_measured(tiny_city, tmp_path):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (place,) = [n for n, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])]
    more = ["--threads=0", "--device=cpu", f"--dataPath={tmp_path}", f"--runsPath={tmp_path / 'runs'}"]
    given = f"weights, root, num_clusters, image_size, more = 'none', {str(tiny_city)!r}, 4, [48, 64], {more!r}"
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(given))
    client = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(NOTEBOOK.parent)}})
    client.execute()  # raises where a cell fails
    (result,) = json.loads((tmp_path / "runs" / "results.json").read_text())
    shown = {
        cell.id: [output.get("data", {}) for output in cell.outputs] for cell in notebook.cells if "outputs" in cell
    }
    table = next(data["text/markdown"] for data in shown["recalls"] if "text/markdown" in data).splitlines()
    names, values = (row.strip("| ").split(" | ") for row in (table[0], table[2]))
    recalls = {int(name.removeprefix("R@")): float(value) for name, value in zip(names, values, strict=True)}
    assert recalls == {int(n): round(100 * recall, 1) for n, recall in result["recalls"].items()}
    assert "vgg16 (scratch" in result["model"] and result["queries"] == 12
    (folder,) = (tmp_path / "runs").glob("test_val_*")
    panels = sorted((folder / "panels").iterdir())
    wanted = [path.read_bytes() for path in (folder / "recall.png", folder / "map.png", *panels)]
    pictures = [data.get("image/png") or data.get("image/jpeg") for data in shown["pictures"]]
    assert [base64.b64decode(picture) for picture in pictures if picture] == wanted and len(panels) == 5
