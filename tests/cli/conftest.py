"""What the commands' tests share with those of other packages."""

from tests.healing.conftest import little_text  # noqa: F401 (a fixture)
