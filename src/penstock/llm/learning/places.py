"""How many requests a server works on at once, where it refuses the next: learned from its refusals.

Pure arithmetic: how many were under way in, how many may be out. It is in one of these states:

    UNKNOWN ── a refusal says that it is for that ─────────────────────────────────▶ KNOWN
    UNKNOWN ── refusals agree: each with as many under way, and none admitted then ─▶ KNOWN, as far as that goes on
    KNOWN ──── a refusal with fewer under way ─▶ fewer: others use places too
    KNOWN ──── answers enough while all places were taken ─▶ one more, then two more, until one is refused

A rate looks different: what it refuses depends on what left a while ago, and hardly on what is under way.

`endpoints` counts what is under way, `discovered` has a limiter hold requests back until there is a place, and
`wording` reads whether a refusal says that it is for that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Places"]

AGREE = 4
"""Refusals with the same number under way, one after the other, that cannot be chance."""

FIRST_LOOK = 8
"""Answers, and at least one for each place, after which one more is tried at first."""

RAREST_LOOK = 400
"""The same at most, where none was found again and again: each look that finds none is a refusal."""


@dataclass(slots=True)
class Places:
    """What is known of it.

    Attributes:
        most: Requests that may be under way at once; None: nothing is known.
    """

    most: int | None = None
    _is_said: bool = False  # by a refusal's words
    _named: float = math.inf  # by the same
    _answers: int = 0  # since it was last looked whether there are more
    _between: float = 0.0  # answers from one look to the next
    _step: int = 1
    _is_look: bool = False  # the last change was one more, and no refusal has come since
    _candidate: int | None = None  # as many were under way at each of the last refusals
    _agreed: int = 0
    _since: int = 0  # admitted since the last of them

    def refused(self, others: int, *, said: bool, named: float | None = None) -> bool:
        """A request was refused that left while `others` were under way; True: that is why.

        Args:
            others: Without it, and without those that were refused.
            said: Whether the refusal says that it is for how many are under way.
            named: How many there may be, as it says.
        """
        if said:
            self._is_said, self._named = True, self._named if named is None else max(1.0, named)
        elif self.most is None:
            self._compare(others)
            if self._agreed < AGREE:
                return False
        elif not self._is_said and others < self.most - 1:
            self.most = self._candidate = None  # it was chance
            return False
        most = int(min(max(1, others), self._named))
        if self.most is None:
            self._between = max(FIRST_LOOK, most)
        elif most >= self.most:
            return True  # it left before that was known
        elif self._is_look:
            self._between = min(2 * self._between, RAREST_LOOK)
        self.most, self._answers, self._step, self._is_look = most, 0, 1, False
        return True

    def _compare(self, others: int) -> None:
        """Whether it is as it was with the refusals before."""
        if others != self._candidate:
            self._candidate, self._agreed = others, 0
        elif others and self._since >= max(2.0, others / 2):  # not one bunch
            self._agreed += 1
        else:
            return
        self._since = 0

    def admitted(self, others: int) -> None:
        """A request was admitted that left while `others` were under way."""
        if self.most is not None:
            self._answers += 1
        elif self._candidate is not None:
            self._since += 1
            if others > self._candidate:
                self._candidate, self._agreed = None, 0

    @property
    def compares(self) -> bool:
        """Whether it matters how many are under way when a request leaves."""
        return self.most is None and self._candidate is not None

    @property
    def wants_more(self) -> bool:
        """Whether to look if there are more, provided that all were taken."""
        between = RAREST_LOOK if self.most is not None and self.most >= self._named else self._between
        return self.most is not None and self._answers >= between

    def look(self, *, all_taken: bool) -> None:
        """Let one more go, or two if one more went; not, if there were no requests for those there are."""
        self._answers = 0
        if self.most is None or not all_taken:
            return
        if self._is_look:  # that went well
            self._step, self._between = 2 * self._step, max(FIRST_LOOK, self.most)
        self.most += self._step
        self._is_look = True
