"""How hits are re-ranked; imports nothing heavy, since `--help` reads its flags."""

from dataclasses import MISSING, dataclass
from functools import partial

from vpr.common.settings import flag, whole

# Of the local score, by the keys of `vpr.retrieval.matching.SCORES`, beside the cosine of global descriptors; both are
# 1 at most.
LOCAL_WEIGHTS = {"soft": 8.0, "spatial": 4.0}

_rule = partial(flag, group="second look")


@dataclass(frozen=True)
class SecondLook:
    """How hits are ordered anew.

    Attributes:
        depth: how many first hits of each query; the others stay behind them.
        by: a key of LOCAL_WEIGHTS.
    """

    depth: int = _rule(
        MISSING,
        "look again at the first K hits of each query: order them anew by how well their local descriptors match; 0: "
        "not (default: locate 50 where the index has local descriptors, else 0)",
        name="rerank", typed=None, modes=("train", "test", "compare", "locate"), type=whole, metavar="K",
    )  # fmt: skip
    by: str = _rule(
        "soft",
        "which matches count: soft, all by how likely they are; spatial, those that are each other's nearest, by how "
        "well their displacements agree",
        name="rerankBy", modes=("train", "test", "compare", "locate", "serve"), choices=LOCAL_WEIGHTS,
    )  # fmt: skip

    @property
    def weight(self) -> float:
        """Of the local score; the global cosine has 1."""
        return LOCAL_WEIGHTS[self.by]
