"""The Super Nintendo: 65816 code as text and as bytes. Every text is untrusted; knows no model and no data set."""
