"""Load against a fleet: arrivals, traces, clients of both protocols, and a report that checks.

    arrivals, traces, lengths, prompts --> workload --> run --> clients/ --> a fleet
                                                         |
                                                      records --> report: table, JSON, plot

Everything left of `run` is pure and seeded, so that the simulator can replay the same load.
`python -m loadgen --help` is the command.
"""
