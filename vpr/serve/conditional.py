"""Requests that want an answer only if it is another one than they have."""

from starlette.requests import Request


def is_known(request: Request, tag: str) -> bool:
    """Whether the client has what an ETag names: If-None-Match lists it, weak or strong, or is * (RFC 9110, 13.1.2).

    Args:
        tag: with its quotes, without a comma.
    """
    listed = ",".join(request.headers.getlist("if-none-match")).split(",")
    return any(each.strip().removeprefix("W/") in (tag, "*") for each in listed)
