"""The errors that a user can cause."""


class InputError(ValueError):
    """Something the caller gave cannot be used.

    The message is one plain sentence that says what is wrong and what to do; the page shows it as it is and the command line prints it and
    exits with 2.
    """


class UnmeasurableError(InputError):
    """A voice cannot be measured: there are no texts, or it can say none of them."""
