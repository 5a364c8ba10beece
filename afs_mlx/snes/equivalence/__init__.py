"""Whether two routines do the same, found by running both from many states. Knows no model and no data set."""
