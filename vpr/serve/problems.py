"""What a client is told that asks for something wrong: a status of HTTP and one sentence, nothing of the server."""

from starlette.responses import JSONResponse


class Problem(Exception):
    """Ends a request.

    Attributes:
        status: of HTTP.
        text: one sentence.
        close: whether the connection ends too, since part of the request was left unread.
        seconds: after which it may be asked again, of 429 and 503.
    """

    def __init__(self, status: int, text: str, close: bool = False, seconds: int = 1) -> None:
        super().__init__(text)
        self.status, self.text, self.close, self.seconds = status, text, close, seconds

    def response(self) -> JSONResponse:
        """As it goes to the client."""
        headers = {"connection": "close"} if self.close else {}
        if self.status in (429, 503):
            headers["retry-after"] = str(self.seconds)
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        return JSONResponse({"error": self.text}, self.status, headers)


def busy(seconds: int = 1) -> Problem:
    """There is more to do than the queue holds."""
    return Problem(503, "the server has too much to do: ask again in a moment", seconds=seconds)
