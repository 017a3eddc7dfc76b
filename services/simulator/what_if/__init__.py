"""What if: a fleet past any machine, as many independent cells of the simulated one."""
