"""What a Python user imports to publish requests over NATS and read their tokens exactly once.

`client.TideClient` is the door; `reader.StreamReader` is the pure core behind it, which the
simulator's clients share.
"""
