"""Errors that a user can act on."""


class UserError(ValueError):
    """Something the user gave cannot be used.

    The message is one sentence that says what was found, what was wanted and what to do. The tools print it without a
    traceback and exit with status 1.
    """


class DiagnosableError(UserError):
    """A UserError for a reason that ``convnext-dense doctor`` finds before a training; the tools name it then."""
