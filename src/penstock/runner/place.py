"""A server that rows may go to: how they get there, which limits it keeps, and whether it is there.

A run has one of them, or several as a pool: other servers, or other keys of the same one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from penstock import Calendar, Limiter, Rate, Sliding
from penstock.llm.endpoints import Endpoint
from penstock.runner.client import Client
from penstock.runner.outage import ServerOutage

__all__ = ["Limits", "LimitsOf", "Place", "Rates", "rates_of"]

Limits = Mapping[str, tuple[Rate | Sliding | Calendar, ...]]
"""Unit → its limits."""

Rates = Mapping[str, tuple[Rate, ...]]
"""Unit → its limits, each as a rate."""

LimitsOf = Callable[[str], tuple[str, "Limits | Limiter | Endpoint | None"]]
"""Model → (name of the models that share its limits, the limits; a limiter that others use too; an endpoint, which
other runs in this loop use too; None: the server's answers will tell)."""


def rates_of(limits: Limits) -> Rates:
    """What limits allow at best: a window gives all of its amount at once, and then as much in each of its periods."""
    return {
        unit: tuple(each if isinstance(each, Rate) else Rate(each.amount, each.per) for each in several)
        for unit, several in limits.items()
    }


class Place:
    """A server that rows may go to.

    Attributes:
        client: What sends.
        limits_of: The limits of a model there. ValueError: it has none.
        name: What to call it, where there are several.
        outage: Whether it is there; a run sets how long it may be away.
        in_trouble: Rows that failed there one after the other, by their custom_ids, with no answer in between.
        closed: Why nothing is sent there any more; "" while it is.
    """

    __slots__ = ("client", "closed", "in_trouble", "limits_of", "name", "outage")

    def __init__(self, client: Client, limits_of: LimitsOf, name: str = "") -> None:
        """A place that is open and thought to be there."""
        self.client: Client = client
        self.limits_of: LimitsOf = limits_of
        self.name: str = name
        self.outage: ServerOutage = ServerOutage(0.0)
        self.in_trouble: set[str | int] = set()
        self.closed: str = ""

    @property
    def is_up(self) -> bool:
        """Whether rows may well be sent there now."""
        return not self.closed and self.outage.since is None
