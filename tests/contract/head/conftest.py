"""One Ray head for all tests of this folder."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest


@pytest.fixture(scope="package")
def local_head(own_head: Callable[[], AbstractContextManager[Any]]) -> Iterator[Any]:
    with own_head() as head:
        yield head
