"""How hits are re-ranked; imports nothing heavy, since `--help` reads its flags."""

from dataclasses import MISSING, dataclass
from functools import partial

from vpr.common.settings import flag, whole

# Of the local score, by the keys of `vpr.retrieval.matching.SCORES`, beside the cosine of global descriptors; both are
# 1 at most.
LOCAL_WEIGHTS = {"soft": 8.0, "spatial": 4.0}
SECOND_LOOK = "a second look"  # how results and calibrations name re-ranking, in files of earlier versions too
HEAD, KEYPOINTS = "head", "xfeat"
BY = (HEAD, *LOCAL_WEIGHTS, KEYPOINTS)

_rule = partial(flag, group="re-ranking")


@dataclass(frozen=True)
class Reranking:
    """How hits are ordered anew. The flags' help says what the fields are."""

    depth: int = _rule(
        MISSING,
        "look again at the first K hits of each query: order them anew by how well their local descriptors match; 0: "
        "not (default: locate 50 where the index has local descriptors, else 0)",
        name="rerank", typed=None, modes=("train", "distill", "test", "compare", "locate"), type=whole, metavar="K",
    )  # fmt: skip
    by: str = _rule(
        HEAD,
        "what orders them: head, all scores by one small regression; soft, matches of all local descriptors by how "
        "likely they are; spatial, those that are each other's nearest, by how well their displacements agree; xfeat, "
        "keypoints that agree with one camera's movement",
        name="rerankBy", modes=("train", "distill", "test", "compare", "locate", "serve"), choices=BY,
    )  # fmt: skip
    verified: int = _rule(
        20,
        "verify the first N of these hits by keypoints, where --keypointWeights has the network for it; 0: none",
        name="verify", modes=("test", "compare", "locate", "serve"), type=whole, metavar="N",
    )  # fmt: skip

    @property
    def weight(self) -> float:
        """Of the local score; the global cosine has 1."""
        return LOCAL_WEIGHTS[self.by]

    @property
    def takes_local(self) -> bool:
        """Whether local descriptors are compared."""
        return self.by != KEYPOINTS

    @property
    def takes_keypoints(self) -> bool:
        """Whether keypoints are."""
        return self.by in (HEAD, KEYPOINTS) and self.verified > 0

    def text(self, dim: int) -> str:
        """How results and calibrations name it, by local descriptors of `dim` dimensions."""
        return f"{SECOND_LOOK} at the first {self.depth} hits ({self.by}, {dim}-D local descriptors in 8 bits)"

    def verified_text(self) -> str:
        """How they name verification by keypoints."""
        return f"verification of the first {min(self.depth, self.verified)} hits ({self.by}, XFeat's keypoints)"
