"""What a client is told that asks for something wrong: a status of HTTP and one sentence, nothing of the server."""

from collections.abc import Sequence
from typing import Any, TypeVar

from starlette.responses import JSONResponse

from vpr.retrieval.ask import Changed, EngineAway, NotServed, Refusal, TooLarge, TooSmall

# The status of a question that has no answer.
STATUS = {TooSmall: 422, TooLarge: 413, NotServed: 422, Changed: 503, EngineAway: 503}
# What kind of error a status is, where nothing more is said.
CODES = {
    400: "wrong_request", 401: "token_wanted", 403: "not_allowed", 404: "not_there", 405: "wrong_method",
    408: "too_slow", 409: "written_by_another", 413: "too_large", 415: "no_image", 422: "not_possible",
    429: "too_many_requests", 500: "failed", 503: "not_now",
}  # fmt: skip
ENGINE_AWAY = "engine_away"
AWAY_SECONDS = 5  # after which a client is told to ask again, where the engine does not answer
Other = TypeVar("Other")


class Problem(Exception):
    """Ends a request with a status of HTTP and one sentence."""

    def __init__(self, status: int, text: str, close: bool = False, seconds: int = 1, code: str = "") -> None:
        super().__init__(text)
        self.status, self.text = status, text
        self.close = close  # whether the connection ends too, since part of the request was left unread
        self.seconds = seconds  # after which it may be asked again, of 429 and 503
        self.code = code or CODES.get(status, "failed")  # what kind of error it is, for programs

    def response(self) -> JSONResponse:
        """As it goes to the client."""
        headers = {"connection": "close"} if self.close else {}
        if self.status in (429, 503):
            headers["retry-after"] = str(self.seconds)
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        return JSONResponse({"error": self.text, "code": self.code}, self.status, headers)


def problem_of(answer: Other | Refusal) -> "Other | Problem":
    """What a client is told of a question that has no answer; all else is left as it is."""
    if not isinstance(answer, Refusal):
        return answer
    seconds, code = (AWAY_SECONDS, ENGINE_AWAY) if isinstance(answer, EngineAway) else (1, "")
    problem = Problem(STATUS[type(answer)], answer.told, seconds=seconds, code=code)
    problem.__cause__ = answer
    return problem


def wrong(errors: Sequence[Any], at: int = 0) -> Problem:
    """What a client is told of the first of pydantic's errors; `at` is where its location has a parameter's name."""
    where = errors[0]["loc"] or ("what is said of an image",)
    return Problem(400, f"{where[min(at, len(where) - 1)]}: {errors[0]['msg']}")


def busy(seconds: int = 1) -> Problem:
    """There is more to do than the queue holds."""
    return Problem(503, "the server has too much to do: ask again in a moment", seconds=seconds, code="busy")
