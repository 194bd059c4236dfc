"""One worker of several that send batches under one limit: waits for a line on stdin, sends, and says as JSON what it
did."""

from __future__ import annotations

import base64
import json
import pickle
import sys
import time


def chat(number):
    messages = [{"role": "user", "content": f"{number:060}"}]
    return {"custom_id": f"row-{number}", "body": {"model": "m", "messages": messages}}


def say(text):
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    plan = json.loads(sys.argv[1])
    with pickle.loads(base64.b64decode(plan["sender"])) as send:
        send([])  # connects nothing, and loads what is loaded at first use
        say("ready")
        sys.stdin.readline()
        answered, failed, cpu = 0, 0, time.process_time()
        end = plan["first"] + plan["rows"]
        for begin in range(plan["first"], end, plan["batch"]):
            for one in send([chat(number) for number in range(begin, min(begin + plan["batch"], end))]):
                answered += one.error is None
                failed += one.error is not None
        say(
            json.dumps(
                {
                    "answered": answered,
                    "failed": failed,
                    "ended": time.monotonic(),
                    "cpu": time.process_time() - cpu,
                }
            )
        )
