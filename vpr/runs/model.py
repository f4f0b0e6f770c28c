"""The model that every mode but cluster and train starts from: a run's or an exported file's."""

from pathlib import Path

from vpr.common.errors import UserError
from vpr.models.onnx_model import OnnxModel
from vpr.runs.loaded import LoadedModel, WhiteningChoice
from vpr.runs.stored import is_exported


def load_model(
    path: Path,
    which: str = "best",
    whitened: bool = True,
    choice: WhiteningChoice | None = None,
    checkpoints: str | None = None,
) -> LoadedModel:
    """The model of a run, or of an exported file.

    Args:
        path: a run's folder, or an exported file.
        which: checkpoint of a run, best or latest.
        whitened: with its whitening, if it has one.
        choice: of the whitening; None takes that for images as the run was trained on.
        checkpoints: folder of the checkpoints in a run; None is the run's own.

    Raises:
        UserError: run, checkpoint, file or whitening are missing, damaged or of something else.
    """
    if is_exported(path):
        return _exported(path, whitened)
    from vpr.runs.pytorch_model import load_run

    return load_run(path, which, whitened, choice, checkpoints)


def _exported(path: Path, whitened: bool) -> LoadedModel:
    model = OnnxModel(path)
    if not whitened and model.dim != model.pooled_dim:
        raise UserError(f"{path} holds its whitening inside: export the run with --noWhiten, or name the run")
    return LoadedModel(model, {"model": path.name}, path.parent, path.parent, model.card["flags"])
