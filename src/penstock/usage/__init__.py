"""Use per user: a ledger of every call, how it is read, and caps for each user.

ledger      `Ledger` writes every call down;  entries: from events to calls;  file: the SQLite file
history     `History` reads it
live        the last minutes of it, and how full the limits in a store are
evidence    figures for higher limits;  report, words: as a document
quotas      `Quotas`: caps per user, over limiters;  asgi: in front of a web application
caps        what a cap is;  quota: how much of it is used, and the error beyond it
quota_records  what a store keeps of users;  reviews: calls beyond a cap
"""

from penstock.usage.caps import Cap
from penstock.usage.file import LedgerError
from penstock.usage.history import History, Minute, RecordedCall, Totals
from penstock.usage.ledger import Ledger, LedgerStatistics
from penstock.usage.quota import Quota, QuotaExceeded
from penstock.usage.quotas import Quotas
from penstock.usage.reviews import Review

__all__ = [
    "Cap",
    "History",
    "Ledger",
    "LedgerError",
    "LedgerStatistics",
    "Minute",
    "Quota",
    "QuotaExceeded",
    "Quotas",
    "RecordedCall",
    "Review",
    "Totals",
]
