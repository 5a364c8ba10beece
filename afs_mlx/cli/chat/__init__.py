"""The conversation in the terminal: reading lines, slash commands, streaming answers."""
