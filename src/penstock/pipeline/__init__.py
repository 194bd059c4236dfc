"""Layers around a call, outermost first.

    pipe = Pipeline(retry, circuit_breaker(on=OSError), limiter(tokens=count), timeout(20))
    ask = pipe(client.chat.completions.create)

A layer is any decorator of a function, so `Pipeline(a, b)(f)` is `a(b(f))` and nothing more. Besides `Pipeline` there
are a few layers that limiters and retries are often used with, one in each file. An async context manager is a layer
too: `Pipeline` enters it around every call.

`_core.breaker` counts calls and `_user_errors` classifies errors. The layers make the calls.
"""

from __future__ import annotations

from penstock.pipeline._breaker import circuit_breaker
from penstock.pipeline._fallback import fallback
from penstock.pipeline._hedge import hedge
from penstock.pipeline._pausing import pausing
from penstock.pipeline._pipeline import Pipeline, PipelineOrderWarning
from penstock.pipeline._timeout import timeout

__all__ = ["Pipeline", "PipelineOrderWarning", "circuit_breaker", "fallback", "hedge", "pausing", "timeout"]
