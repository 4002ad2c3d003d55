"""Fixtures of other packages that the commands' tests share."""

from tests.healing.conftest import sparse  # noqa: F401 (a fixture)
