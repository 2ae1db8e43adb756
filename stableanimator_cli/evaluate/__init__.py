"""``sa evaluate``: videos to scores, tables and a report."""
