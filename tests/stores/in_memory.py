"""The smallest store there is: a dict of one process. What is done with it is done by the part that all stores
share."""

from __future__ import annotations

from penstock import clock
from penstock.stores import Store


class RowsInMemory(Store):
    """Rows in a dict; several stores over one dict and one lock are as many processes."""

    def __init__(self, rows, lock, **options):
        super().__init__(**options)
        self.rows = rows
        self.row_lock = lock

    def exchange(self, names, decide):
        with self.row_lock:
            new = decide([self.rows.get(name) for name in names], float(int(clock.wall() * 1e6)))
            self.rows.update({name: row[0] for name, row in zip(names, new, strict=True) if row})
