"""What every shared store must keep, as tests that run on yours.

    # test_my_store.py, with pytest and anyio's plugin
    from penstock.testing.store_contract import StoreContract

    class TestMyStore(StoreContract):
        @pytest.fixture
        def make_store(self, tmp_path):
            return lambda **options: MyStore(tmp_path / "state", **options)

Every call of `make_store` returns a store object of its own over the same state, as another process would have it. The
tests run in real time, since a store's clock is its own; they wait some tenths of a second each. What they
say about time is exact where it is a promise (never early), and generous where a busy machine may be late.

The parts: `_decisions` asks the store itself; `_charges`, `_waiting` and `_changes` ask limiters over it.
"""

from __future__ import annotations

from penstock.testing.store_contract._changes import ChangeContract
from penstock.testing.store_contract._charges import ChargeContract
from penstock.testing.store_contract._decisions import DecisionContract
from penstock.testing.store_contract._waiting import WaitingContract

__all__ = ["StoreContract"]


class StoreContract(DecisionContract, ChargeContract, WaitingContract, ChangeContract):
    """Subclass it with a fixture `make_store`: a function of options that returns a store, always over one state."""
