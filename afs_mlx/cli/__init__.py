"""Parse, call, render: one file per command group. Nothing below imports this floor."""
