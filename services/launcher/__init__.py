"""The `tideserve` command: starts a fleet on one machine, speaks to it, shows it, breaks it.

It composes the services as child processes and decides nothing that a fleet depends on: a fleet
whose launcher is gone stops, and a fleet in containers needs none.
"""
