"""Run folders: what a training or an import left on disk, and which of them answers for an expert."""
