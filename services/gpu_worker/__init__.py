"""One actor per GPU: runs sessions on an engine and delivers every token until it is journaled.

`core` decides and is pure: the simulator runs it with a simulated engine under virtual time.
`shell` gives it a bus, a clock and a thread on which the real engine steps.
"""
