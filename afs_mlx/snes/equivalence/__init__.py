"""Whether two routines do the same, and what each costs, found by running both. Knows no model and no data set."""
