"""Readers of published traces, one module per format; `detect` tells the formats apart.

Two kinds come out: requests with their lengths and arrivals, and nodes that come and go.
"""
