"""PCA whitening, the paper's last step (section 5.1, as the original release does it): shorter, better descriptors."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from vpr.encoder import weights_hash
from vpr.errors import UserError
from vpr.files import replacing

FORMAT = "netvlad whitening 1"
ADDED_TO_VARIANCE = 1e-9  # the original release's
SMALLEST_SHARE = 1e-9  # of the largest variance: below there is nothing but rounding
SMALLEST_VARIANCE = 1e-20
TILE = 4096  # columns that are in float64 at a time


class Whitening(nn.Module):
    """y = diag(1 / sqrt(lambda + 1e-9)) U^T (x - mean), then L2: [B, D] -> [B, dim].

    Attributes:
        mean: [D].
        projection: [dim, D], the rows of U^T over sqrt(lambda + 1e-9), largest variance first.
    """

    def __init__(self, mean: torch.Tensor, projection: torch.Tensor):
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("projection", projection)

    @property
    def dim(self) -> int:
        """Length of a whitened descriptor."""
        return len(self.projection)

    def cropped(self, dim: int) -> "Whitening":
        """The whitening to the first `dim` dimensions.

        Raises:
            UserError: it has not so many.
        """
        if dim > self.dim:
            raise UserError(f"--pcaDim={dim}: the whitening has {self.dim} dimensions; learn more, or give less")
        return Whitening(self.mean, self.projection[:dim])

    def forward(self, descriptors: torch.Tensor) -> torch.Tensor:
        """[B, D] -> [B, dim] of length 1."""
        return F.normalize((descriptors - self.mean) @ self.projection.T, dim=1)


@torch.no_grad()
def learn_whitening(descriptors: torch.Tensor, dim: int) -> Whitening:
    """Principal components of descriptors [n, D], at most `dim` of them, with their variances over n - 1.

    With more dimensions than descriptors, from the n x n products of the descriptors (the dual form). There
    are at most n - 1 components, fewer where descriptors depend on each other.

    Raises:
        UserError: there are not two different descriptors.
    """
    count, length = descriptors.shape
    tiles = [slice(start, min(start + TILE, length)) for start in range(0, length, TILE)]
    mean = torch.cat([descriptors[:, tile].double().mean(dim=0) for tile in tiles]) if count else torch.zeros(length)

    def centred(tile: slice) -> torch.Tensor:
        return descriptors[:, tile].double() - mean[tile]  # [n, columns]

    if length > count:
        products = sum(centred(tile) @ centred(tile).T for tile in tiles)  # [n, n]
    else:
        whole = centred(slice(None))
        products = whole.T @ whole  # [D, D]
    variances, vectors = torch.linalg.eigh(products / max(count - 1, 1))  # ascending
    kept = min(dim, int((variances > SMALLEST_SHARE * variances[-1].clamp_min(SMALLEST_VARIANCE)).sum()))
    if kept == 0:
        raise UserError(f"{count} descriptors do not differ: nothing can be whitened; take more photos")
    variances, vectors = variances.flip(0)[:kept], vectors.flip(1)[:, :kept]
    scales = 1 / torch.sqrt(variances + ADDED_TO_VARIANCE)  # [kept]
    projection = torch.empty(kept, length)
    if length > count:
        scales = scales / torch.sqrt(variances * (count - 1))  # of U = X^T V / sqrt(lambda (n - 1))
        for tile in tiles:
            projection[:, tile] = (scales[:, None] * (vectors.T @ centred(tile))).float()
    else:
        projection.copy_(scales[:, None] * vectors.T)
    return Whitening(mean.float(), projection)


def whitening_file(folder: Path, model: nn.Module) -> Path:
    """Where the whitening of a model without one lies: the name holds a hash of all its weights."""
    return folder / f"whitening_{weights_hash(model)}.pth.tar"


def save_whitening(path: Path, whitening: Whitening) -> None:
    """Write a whitening, whole or not at all."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        torch.save({"format": FORMAT, **whitening.state_dict()}, file)


def load_whitening(path: Path) -> Whitening:
    """Read what `save_whitening` wrote, without running any code from it.

    Raises:
        UserError: unreadable, or not a whitening.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["format"] != FORMAT:
            raise KeyError("format")
        return Whitening(state["mean"], state["projection"])
    except Exception as error:  # torch.load raises anything at all on a damaged or foreign file
        raise UserError(
            f"{path} cannot be read as a whitening ({type(error).__name__}): delete it and run --mode=whiten again"
        ) from error
