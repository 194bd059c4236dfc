"""For claims about what happens in real time: how much was granted, how often a store was asked, who had how much of
it."""

BUSY = "(or this machine is too busy)"
"""The message of such a claim. Where it fails, the test is run again when the machine is quieter, three times at most:
what is broken fails each time, and what a machine that is busy with other things has bent does not. That nothing is
ever granted too much is no such claim: it must hold whatever happens."""
