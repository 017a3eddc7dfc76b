"""One model over several processes: positions, slices of weights, process groups, stage passes.

A replica is P pipeline stages of M tensor shards, one process each. Every process runs the same
plans in the same order; the lead, shard 0 of the last stage, owns the scheduler and samples, so
that no token has to travel back.
"""
