"""The errors that a user, a hub or a damaged file can cause.

Callers branch on their types, never on their messages.
"""


class InputError(ValueError):
    """Something the caller gave cannot be used.

    The message is one plain sentence that says what is wrong and what to do. The page shows it as
    it is; the command line prints it and exits with 2.
    """


class UnmeasurableError(InputError):
    """A voice cannot be measured: there are no texts, or it can say none of them."""


class HubError(InputError):
    """The Hugging Face hub refuses, answers with an error, or cannot be reached."""


class NotFoundError(HubError):
    """The hub has no such model or revision, or does not show it to this user."""


class LoginError(HubError):
    """Nobody is logged in to the hub, or the access token lacks the rights that are needed."""


class DamagedFileError(InputError):
    """A file that vits_prune wrote earlier is damaged or incomplete."""
