"""One file per cloud: how to ask it, and what its answers mean."""
