"""Measured, never timed in tests: what the shipped networks do on figures that they never saw."""
