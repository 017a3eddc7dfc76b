"""Programs to run against a fleet, and to copy from."""
