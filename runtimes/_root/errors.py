"""Errors that a user can act on. Everything else that is raised is a bug of ours."""


class InputError(ValueError):
    """Something the user gave cannot be used: the message is one line that says what is wrong and what to do.

    The command line prints the message and exits with 2.
    """


class ParityError(RuntimeError):
    """An artifact does not compute what the model computes. The command line exits with 1."""
