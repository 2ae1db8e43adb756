"""The shared GPU engine: devices, networks, encoding, sampling and decoding (``docs/design.md`` §6)."""

from __future__ import annotations

import os

# torch reads this at its first allocation. Large tensors on the CPU are then in huge pages: fewer page faults, and less
# memory that the C library cannot reuse (docs/performance.md). Other systems than Linux ignore it.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
