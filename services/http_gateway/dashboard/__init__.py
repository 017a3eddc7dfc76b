"""The dashboard: one page that shows the fleet as it reports itself, live."""
