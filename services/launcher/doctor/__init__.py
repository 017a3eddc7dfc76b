"""`tideserve doctor`: is this machine fit to serve, and if not, what mends it."""
