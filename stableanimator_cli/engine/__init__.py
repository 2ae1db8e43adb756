"""The shared GPU engine: devices, networks, encoding, sampling and decoding (``docs/design.md`` §6)."""
