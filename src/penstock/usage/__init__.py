"""Use per user: a ledger of every call, how it is read, and caps for each user."""

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
