"""A fleet under a spot trace, in virtual time: the deciding cores unchanged, the GPUs arithmetic.

Watchers, planner and migrator are the live cores, interpreted command by command; what they
command (load, copy, form, stop) takes the time that bytes take over the links of the profile.
Engines follow a cost model: in fixed batches as in SpotServe's paper, or with the real scheduler.
What is assumed and what was calibrated stands in docs/SIMULATION.md.
"""
