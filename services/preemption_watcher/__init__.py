"""One actor per node: turns what the cloud says about the node's end into notices for the fleet.

`core` decides and is pure. `sources` ask the cloud; `shell` gives the core a bus, the node's socket
and a clock.
"""
