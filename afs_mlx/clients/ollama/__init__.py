"""Ollama: what a model of ours says there (content, templates, Modelfile) and how it gets there (server, registration).

`content` is the one place that decides template, system text, stop texts, parameters and messages; the Modelfile and
the REST call both state what it decided.
"""
