"""The one error a user can cause."""


class InputError(ValueError):
    """Something the caller gave cannot be used.

    The message is one plain sentence that says what is wrong and what to do; the page shows it as it is and the command line prints it and
    exits with 2.
    """
