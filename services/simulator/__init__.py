"""The simulator: the cores of router and worker, unchanged, under virtual time.

It interprets the same commands as the live shells, over a broker that loses, doubles and delays,
while processes die, pause and wake. What it checks is what the README promises.
"""
