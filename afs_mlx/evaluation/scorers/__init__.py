"""One scorer a file: rows to cases, answers to verdicts."""
