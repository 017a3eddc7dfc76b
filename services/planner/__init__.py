"""The planner: from what is known of the fleet to the placement that it should have.

One planner leads by compare-and-set, others stand by. It commands nobody.
"""
