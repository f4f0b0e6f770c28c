"""PCA whitening, the paper's last step (section 5.1, as the original release does it): shorter, better descriptors."""

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from vpr.common.errors import UserError
from vpr.common.provenance import load_torch, recipe_hash, save_torch
from vpr.models.pca import principal_components

FORMATS = ("netvlad whitening 1", "netvlad whitening 2")  # the first says nothing of what it was learnt on
ADDED_TO_VARIANCE = 1e-9  # the original release's
SMALLEST_SHARE = 1e-9  # of the largest variance: below there is nothing but rounding
SMALLEST_VARIANCE = 1e-20
TILE = 4096  # columns that are in float64 at a time
LARGEST_ERROR = 1e-6  # of a bias that a mean has to reproduce, in units of its projection's rows
ANY_SIZE = "any"  # image size of a whitening that serves images of every size


class Whitening(nn.Module):
    """y = diag(1 / sqrt(lambda + 1e-9)) U^T (x - mean), then L2: [B, D] -> [B, dim].

    Of a model that was adapted to a place, v = x - mean becomes v - R^T R v before, with the rows R of `removed`
    (orthogonal, of length 1 at most); without a projection this alone is done.
    """

    mean: torch.Tensor  # [D]
    # [dim, D], the rows of U^T over sqrt(lambda + 1e-9), largest variance first; None: all D dimensions, as they are
    projection: torch.Tensor | None
    removed: torch.Tensor | None  # [r, D], see `vpr.training.adapting`

    def __init__(
        self,
        mean: torch.Tensor,
        projection: torch.Tensor | None,
        learnt_on: str = "",
        removed: torch.Tensor | None = None,
    ):
        super().__init__()
        self.learnt_on = learnt_on  # in words, for results
        self.register_buffer("mean", mean)
        self.register_buffer("projection", projection)
        self.register_buffer("removed", removed)

    @property
    def dim(self) -> int:
        return len(self.mean) if self.projection is None else len(self.projection)

    def cropped(self, dim: int) -> "Whitening":
        """The whitening to the first `dim` dimensions; as many as there were before it: those that were removed are
        all that goes. Raises a UserError where it has not so many."""
        if self.removed is not None and dim == len(self.mean):
            return Whitening(torch.zeros_like(self.mean), None, self.learnt_on, self.removed)
        if self.projection is None or dim > self.dim:
            raise UserError(f"--pcaDim={dim}: the whitening has {self.dim} dimensions; learn more, or give less")
        return Whitening(self.mean, self.projection[:dim], self.learnt_on, self.removed)

    def linear(self, values: torch.Tensor) -> torch.Tensor:
        """[..., D] -> [..., dim], of differences to the mean."""
        if self.removed is not None:
            values = values - (values @ self.removed.T) @ self.removed
        return values if self.projection is None else values @ self.projection.T

    def transposed(self, values: torch.Tensor) -> torch.Tensor:
        """[..., dim] -> [..., D], by the transpose of `linear`."""
        values = values if self.projection is None else values @ self.projection
        return values if self.removed is None else values - (values @ self.removed.T) @ self.removed

    def forward(self, descriptors: torch.Tensor) -> torch.Tensor:
        """[B, D] -> [B, dim] of length 1."""
        return F.normalize(self.linear(descriptors - self.mean), dim=1)


@torch.no_grad()
def learn_whitening(descriptors: torch.Tensor, dim: int) -> Whitening:
    """Principal components of descriptors [n, D], at most `dim` and n - 1 of them, with their variances over n - 1.

    With more dimensions than descriptors, from the n x n products of the descriptors (the dual form). There are fewer
    components where descriptors depend on each other. Raises a UserError: there are not two different descriptors.
    """
    count, length = descriptors.shape
    tiles = _tiles(length)
    mean = torch.cat([descriptors[:, tile].double().mean(dim=0) for tile in tiles]) if count else torch.zeros(length)

    def centred(tile: slice) -> torch.Tensor:
        return descriptors[:, tile].double() - mean[tile]  # [n, columns]

    if is_dual := length > count:
        products = torch.zeros(count, count, dtype=torch.float64, device=descriptors.device)
        for tile in tiles:
            products = products + centred(tile) @ centred(tile).T
    else:
        whole = centred(slice(None))
        products = whole.T @ whole  # [D, D]
    variances, vectors = principal_components(products / max(count - 1, 1), dim)
    kept = int((variances > SMALLEST_SHARE * variances[0].clamp_min(SMALLEST_VARIANCE)).sum())
    if kept == 0:
        raise UserError(f"{count} descriptors do not differ: nothing can be whitened; take more images")
    variances, vectors = variances[:kept], vectors[:, :kept]
    scales = 1 / torch.sqrt(variances + ADDED_TO_VARIANCE)  # [kept]
    if not is_dual:
        return Whitening(mean.float(), (scales[:, None] * vectors.T).float())
    scales = scales / torch.sqrt(variances * (count - 1))  # of U = X^T V / sqrt(lambda (n - 1))
    projection = torch.empty(kept, length)
    for tile in tiles:
        projection[:, tile] = (scales[:, None] * (vectors.T @ centred(tile))).float()
    return Whitening(mean.float(), projection)


@torch.no_grad()
def whitening_of_affine(matrix: torch.Tensor, bias: torch.Tensor, learnt_on: str = "") -> Whitening:
    """The whitening with matrix x + bias = projection (x - mean), of [dim, D] and [dim]: the shortest such mean,
    -matrix^+ bias.

    Rows are brought to length 1 before, so that the large scales of small variances do not spoil the solution.
    Raises a UserError: there is no such mean, since the rows depend on each other.
    """
    lengths = torch.linalg.vector_norm(matrix.double(), dim=1)  # [dim]
    lengths = torch.where(lengths > 0, lengths, 1.0)
    wanted, tiles = -bias.double() / lengths, _tiles(matrix.shape[1])

    def rows(tile: slice) -> torch.Tensor:
        return matrix[:, tile].double() / lengths[:, None]

    products = torch.zeros(len(matrix), len(matrix), dtype=torch.float64)
    for tile in tiles:
        part = rows(tile)
        products.addmm_(part, part.T)
    factor, failed = torch.linalg.cholesky_ex(products)
    if failed:
        weights = torch.linalg.pinv(products, hermitian=True) @ wanted
    else:
        weights = torch.cholesky_solve(wanted[:, None], factor)[:, 0]
    mean = torch.cat([rows(tile).T @ weights for tile in tiles]).float()
    error = (sum(rows(tile) @ mean[tile].double() for tile in tiles) - wanted).abs().max().item()
    if not error <= LARGEST_ERROR * max(1.0, wanted.abs().max().item()):
        raise UserError(
            f"a whitening's bias is missed by {error:.1e} by every mean: its {len(matrix)} rows depend on each other; "
            "leave the whitening out, or learn one with --mode=whiten"
        )
    return Whitening(mean, matrix.float(), learnt_on)


def _tiles(length: int) -> list[slice]:
    return [slice(start, start + TILE) for start in range(0, length, TILE)]


@dataclass(frozen=True)
class WhiteningRecipe:
    """What a whitening is learnt on. It serves descriptors that agree in all of this but the training set."""

    weights_hash: str  # of the model without its whitening
    arch: str
    pooling: str
    normalization: str
    precision: str
    image_size: str  # `H W` in pixels that images were resized to, or `own`; `any` where it came with an imported model
    dataset: str = ""  # name of the training set
    dataset_hash: str = ""  # of its names and positions

    def path(self, folder: Path) -> Path:
        """The file of a whitening; its name tells recipes apart."""
        return folder / f"whitening_{self.weights_hash}_{recipe_hash(asdict(self))}.pth.tar"

    def difference(self, wanted: "WhiteningRecipe") -> str | None:
        """In what it does not serve `wanted`, whatever the training sets; None where it does.

        The number format may differ, as it does between machines: descriptors of one model in two formats are close.
        """
        for name in ("weights_hash", "arch", "pooling", "normalization", "image_size"):
            found, value = getattr(self, name), getattr(wanted, name)
            if found != value and (name, found) != ("image_size", ANY_SIZE):
                return f"{name}={found}, not {value}"
        return None


@dataclass(frozen=True)
class StoredWhitening:
    """A whitening as it is stored, with all dimensions that were learnt."""

    whitening: Whitening
    dim: int  # how many of them are taken unless the user asks for others
    recipe: WhiteningRecipe | None = None  # what it was learnt on; None in files of earlier versions
    images: int = 0  # how many images it was learnt on; 0 if unknown


def whitening_files(folder: Path, weights_hash: str) -> list[Path]:
    """Files of whitenings of a model, by the hash of its weights; an earlier version's comes first."""
    earlier = folder / f"whitening_{weights_hash}.pth.tar"
    found = sorted(folder.glob(f"whitening_{weights_hash}_*.pth.tar"))
    return [earlier, *found] if earlier.is_file() else found


def save_whitening(path: Path, stored: StoredWhitening) -> None:
    """Write a whitening, whole or not at all."""
    recipe = asdict(stored.recipe) if stored.recipe else None
    content = {**stored.whitening.state_dict(), "dim": stored.dim, "photos": stored.images, "recipe": recipe}
    save_torch(path, {"format": FORMATS[1], **content})


def load_whitening(path: Path) -> StoredWhitening:
    """Read what `save_whitening` wrote, running no code of it. Raises a UserError where it is damaged or another's."""
    what, remedy = "a whitening", "delete it and run --mode=whiten or adapt again"
    state: Any = load_torch(path, what, remedy)
    try:
        if state["format"] not in FORMATS:
            raise KeyError("format")
        mean, projection, removed = state["mean"], state["projection"], state.get("removed")
        for rows in (projection, *([] if removed is None else [removed])):
            if rows.ndim != 2 or mean.shape != rows.shape[1:] or not len(rows):
                raise ValueError(f"mean {tuple(mean.shape)}, rows {tuple(rows.shape)}")
        recipe = WhiteningRecipe(**state["recipe"]) if state.get("recipe") else None
        dim = int(state.get("dim", len(projection)))
        images = int(state.get("photos", 0))
    except Exception as error:  # whatever a foreign file may hold
        raise UserError(f"{path} cannot be read as {what} ({type(error).__name__}): {remedy}") from error
    if recipe is None:
        learnt_on = "an unknown set"
    elif recipe.image_size == ANY_SIZE:
        learnt_on = recipe.dataset
    else:
        size = {"own": "own size"}.get(recipe.image_size, re.sub(r"(\d+) (\d+)", r"\1x\2", recipe.image_size))
        learnt_on = f"{images} images of {recipe.dataset} ({size})"
    if removed is not None:
        learnt_on += f", less of what varies within places, in {len(removed)} directions"
    return StoredWhitening(Whitening(mean, projection, learnt_on, removed), dim, recipe, images)
