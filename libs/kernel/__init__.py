"""The vocabulary every core shares: the Core protocol, events, commands, errors, units and seeds.

Imports nothing of the world: no clock, no network, no randomness that is not seeded.
"""
