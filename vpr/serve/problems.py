"""What a client is told that asks for something wrong: a status of HTTP and one sentence, nothing of the server."""

from starlette.responses import JSONResponse

RETRY_AFTER = "1"  # seconds


class Problem(Exception):
    """Ends a request.

    Attributes:
        status: of HTTP.
        text: one sentence.
        close: whether the connection ends too, since part of the request was left unread.
    """

    def __init__(self, status: int, text: str, close: bool = False) -> None:
        super().__init__(text)
        self.status, self.text, self.close = status, text, close

    def response(self) -> JSONResponse:
        """As it goes to the client."""
        headers = {"connection": "close"} if self.close else {}
        if self.status == 503:
            headers["retry-after"] = RETRY_AFTER
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        return JSONResponse({"error": self.text}, self.status, headers)


def busy() -> Problem:
    """There is more to do than the queue holds."""
    return Problem(503, "the server has too much to do: ask again in a moment")
