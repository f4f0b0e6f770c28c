"""Pairs of images that look alike, for matchers and structure from motion: the lines of hloc's and COLMAP's lists."""

from collections.abc import Iterator, Sequence

from vpr.common.errors import UserError
from vpr.search.exact import nearest
from vpr.search.floats import Descriptors


def retrieval_pairs(
    database: Descriptors, queries: Descriptors, database_names: Sequence[str], query_names: Sequence[str], top: int
) -> Iterator[tuple[str, str]]:
    """Each query with its `top` nearest database images, best first, never with itself.

    Args:
        database: [N, dim]; queries: [M, dim], which may be the database.
        database_names, query_names: of the images; equal names are the same image.
    """
    found = nearest(database, queries, top + 1)  # one more: the image itself may be among them
    for query, hits in zip(query_names, found, strict=True):
        others = [database_names[hit] for hit in hits if database_names[hit] != query]
        yield from ((query, other) for other in others[:top])


def require_no_spaces(names: Sequence[str]) -> None:
    """Raises UserError where names have spaces, which divide the two names of a line in a list of pairs."""
    wrong = [name for name in names if len(name.split()) != 1]
    if wrong:
        raise UserError(
            f"--pairs: {len(wrong)} names of images have spaces, first {wrong[0]!r}, which the readers of such a list "
            "take for two names: rename these files"
        )
