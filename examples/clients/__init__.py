"""Other people's clients against a fleet: each asks, streams, and says if the two differ."""
