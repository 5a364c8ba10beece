"""Training data: reading the shapes in use, splitting without leaks. Knows no model and no expert."""
