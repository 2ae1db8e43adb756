"""Networks: torch modules that know shapes and weights, never paths, files or devices' policies."""
