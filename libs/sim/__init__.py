"""A generic discrete-event world: virtual clock, processes that die and pause, a lossy network.

It knows nothing of routers or workers; `services.simulator` puts the real cores into it.
"""
