"""Meets the world: the message bus, time, the environment, signals, logs and metrics.

The only importer of nats, and the only reader of os.environ. Cores never import this package;
shells and process entry points do.
"""
