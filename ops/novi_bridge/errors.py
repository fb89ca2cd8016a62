"""The errors that a command ends with."""


class Failure(Exception):
    """Ends the command with a message that says what failed and what to do next."""


# The codes with which AWS's services refuse an identity.
DENIED = {"AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "AuthorizationError",
          "AuthorizationErrorException", "403", "Forbidden"}


# What reading an answer raises that doesn't have the expected form.
UNEXPECTED = (KeyError, TypeError, ValueError)


class AwsError(Failure):
    """A call that AWS rejected. `code` is AWS's name of the error, or empty if the CLI itself failed."""

    def __init__(self, message, code=""):
        super().__init__(message)
        self.code = code

    @property
    def is_denied(self):
        return self.code in DENIED
