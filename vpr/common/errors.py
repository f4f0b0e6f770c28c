"""The one exception that users see as a line instead of a traceback."""


class UserError(Exception):
    """A mistake the user can mend; its text says what was found, what is wanted and what to do."""

    def __init__(self, text: str):
        super().__init__(" ".join(str(text).split()))  # one line, whatever a library's message brought in
