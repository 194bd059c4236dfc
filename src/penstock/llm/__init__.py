"""What LLM services share, whatever their SDK.

    headers      what a response says about its limits           pure
    failures     what an error means: wait, back off, give up
    tokens       what a request costs, told from its body        pure, but for tiktoken's files
    tables       the limits that a service has published
    learning     what the server can be counted on to have       pure
    lanes        whose limits a request falls under
    transport    all of it under an SDK: the only part that sends anything

What belongs to one service alone is beside this package: `penstock.openai`.
"""
