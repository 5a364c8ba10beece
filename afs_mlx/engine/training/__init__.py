"""The trainer: rows to tokens, batches by true length, the loss where answers are, the loop. Knows no expert."""
