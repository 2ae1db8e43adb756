"""Frozen config dataclasses, one module per verb, and the machinery that reads and writes them."""
