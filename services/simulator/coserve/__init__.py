"""Online and offline work on one engine, in virtual time: the live worker core, a simulated device.

Sessions, steps, yields and copies to host memory are what the worker's core commands; how long each
takes comes from a cost model. What is assumed and calibrated stands in docs/SIMULATION.md.
"""
