"""A process that calls as fast as it can, into a ledger: `python -m tests.usage.worker FILE NAME [COUNT] [HOW]`.

It prints how many calls it has made, after each thousandth of a second. HOW: "close", "forget", or "fork".
"""

from __future__ import annotations

import os
import sys
import time

from penstock import Limiter, per_second
from penstock.usage import Ledger


def main(path, name, count="1000000", how="close"):
    ledger = Ledger(path)
    limiter = Limiter(requests=per_second(10_000_000), on_event=ledger)
    if how == "fork":
        limiter.acquire_nowait(flow="parent")
        if os.fork() == 0:
            for _ in range(int(count)):
                limiter.acquire_nowait(flow=name)
            ledger.close()
            os._exit(0)
        for _ in range(int(count)):
            limiter.acquire_nowait(flow="parent")
        os.wait()
    else:
        for number in range(int(count)):
            limiter.acquire_nowait(flow=name)
            if not number % 20:
                sys.stdout.write(f"{number + 1} {time.monotonic()}\n")
                sys.stdout.flush()
                time.sleep(0.001)
    if how != "forget":
        ledger.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
