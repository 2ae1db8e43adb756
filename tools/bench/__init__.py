"""Measurements behind the tables of the documentation."""
