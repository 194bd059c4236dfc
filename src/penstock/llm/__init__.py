"""What LLM services share, whatever their SDK.

    headers      what a response says about its limits           pure
    failures     what an error means: wait, back off, give up
    tokens       what a request costs, told from its body        pure, but for tiktoken's files
    tables       the limits that a service has published
    discovery    what the server can be counted on to have       pure
    endpoints    the limits that some requests share, here and at the server
    discovered   the same where nobody knows them yet
    transport    all of it under an HTTP client: the only part that sends anything
    clients      all of it under an SDK's client

What belongs to one service alone is beside this package: `penstock.openai`, `penstock.anthropic`.
"""
