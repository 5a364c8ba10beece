"""Clients of what lies outside this machine: the Hub, package indexes, model servers.

Nothing here reaches the network unless a person asked for it.
"""
