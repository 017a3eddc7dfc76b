"""The inference engine of one process: paged KV, continuous batching, a compact decoder.

`requests`, `steps`, `prefix_hashes`, `block_pool` and `scheduler` are pure and import no torch;
`loading` and `runner` are what a worker needs to execute the scheduler's plans.
"""
