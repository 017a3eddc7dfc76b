"""The published tables: one command for each, dated results beside them, append-only."""
