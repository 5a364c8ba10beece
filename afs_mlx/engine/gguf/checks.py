"""What a number of config.json has to be."""

import math
from typing import Any, TypeGuard


def is_count(value: Any) -> TypeGuard[int]:
    """A positive whole number."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def is_positive(value: Any) -> TypeGuard[int | float]:
    """A positive number that is finite."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
