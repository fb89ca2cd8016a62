"""The errors that a command ends with."""


class Failure(Exception):
    """Ends the command with a message that says what failed and what to do next."""


class AwsError(Failure):
    """A call that AWS rejected. `code` is AWS's name of the error, or empty if the CLI itself failed."""

    def __init__(self, message, code=""):
        super().__init__(message)
        self.code = code
