"""Pure arithmetic of decisions: liveness and placement. No clock, no network, no torch."""
