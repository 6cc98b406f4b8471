"""Serving: the `cache` holds blocks, the `scheduler` decides what runs, the `engine` runs it, the `server` speaks HTTP.

Nothing is loaded here, so that the rooms without torch stay without it.
"""
