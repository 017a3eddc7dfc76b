"""Moves KV and weights between workers: who sends what, over which link, verified and resumable.

`layout` (pure) says which worker sends which part. A `Transport` carries messages: `tcp`, `ucx` or,
in one process, `loopback`. `sending` and `receiving` carry one transfer over a connection, and the
`ledger` (pure) knows what has arrived. `peer_connections` keeps links open and measures them.
"""
