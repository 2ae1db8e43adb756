"""A card that need not be here: ``python card_stand_in.py LOG [ROWS HOW]`` replies to rows at once, and fails at ROWS.

HOW: ``out-of-memory``, ``crash``, ``garbage``, ``hang``, or ``kill``, which kills the run that asks; several, with
commas between them, are taken in turn. LOG gets a line per row that was asked for.
"""

import json
import os
import signal
import sys
import time

ENVIRONMENT = {
    "date": "2026-11-29", "device": "NVIDIA Test 9000", "torch": "9.9", "memory": 80 << 30, "capability": "9.0",
    "commit": "abc", "load": 1.0,
}  # fmt: skip
MEASURED = {"gflops": 500e3, "bandwidth": 2e3, "seconds": 10.0, "tflop": 2500.0, "peak": 5 << 30, "predicted": 6 << 30}
log, *given = sys.argv[1:]
rows, ways = (text.split(",") for text in (*given, "", "")[:2])


def reply(found: dict) -> None:
    print(json.dumps({"status": "ok"} | found), flush=True)


reply({})
for line in sys.stdin:
    row = line.strip()
    if row == "hello":
        reply({"environment": ENVIRONMENT})
        continue
    with open(log, "a") as file:
        file.write(row + "\n")
    how = ways[rows.index(row) % len(ways)] if row in rows else ""
    if not how:
        reply(MEASURED | {"error": 1e-6})
    elif how == "out-of-memory":
        reply({"status": "failed", "reason": "OutOfMemoryError: CUDA out of memory"})
    elif how == "crash":
        print("Segmentation fault in a kernel", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)
    elif how == "garbage":
        print("NCCL INFO", flush=True)
    elif how == "kill":
        os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(60 if how in ("hang", "kill") else 0)
