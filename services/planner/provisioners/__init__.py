"""Who gets the nodes that the planner wants: behind one Protocol, chosen by the config."""
