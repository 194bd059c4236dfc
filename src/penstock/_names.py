"""The public names, each once, and the module that has it. `penstock` offers them; nothing imports this file.

Type checkers read it as what it is. At run time `penstock` runs it with an `__import__` that loads nothing and notes
which module has what, so that a name is loaded when it is first asked for. Therefore it holds imports alone.
"""

from penstock._call import Call as Call
from penstock._core.meter import Meter as Meter
from penstock._turn import turn as turn
from penstock.adaptive import Adaptive as Adaptive
from penstock.batching import Batcher as Batcher
from penstock.errors import AttemptTimeout as AttemptTimeout
from penstock.errors import CircuitOpen as CircuitOpen
from penstock.errors import ConfigurationConflict as ConfigurationConflict
from penstock.errors import CostError as CostError
from penstock.errors import MissingUnit as MissingUnit
from penstock.errors import PenstockError as PenstockError
from penstock.errors import QueueFull as QueueFull
from penstock.errors import RateLimited as RateLimited
from penstock.errors import StoreError as StoreError
from penstock.errors import UnknownUnit as UnknownUnit
from penstock.errors import Unsatisfiable as Unsatisfiable
from penstock.errors import WouldBlockEventLoop as WouldBlockEventLoop
from penstock.keyed import Keyed as Keyed
from penstock.limiter import Limiter as Limiter
from penstock.limits import Calendar as Calendar
from penstock.limits import InFlight as InFlight
from penstock.limits import Limit as Limit
from penstock.limits import Rate as Rate
from penstock.limits import Sliding as Sliding
from penstock.limits import Unlimited as Unlimited
from penstock.limits import calendar as calendar
from penstock.limits import in_flight as in_flight
from penstock.limits import per_day as per_day
from penstock.limits import per_hour as per_hour
from penstock.limits import per_minute as per_minute
from penstock.limits import per_second as per_second
from penstock.limits import sliding as sliding
from penstock.limits import unlimited as unlimited
from penstock.mapping import amap as amap
from penstock.permit import Permit as Permit
from penstock.pipeline import Pipeline as Pipeline
from penstock.pipeline import circuit_breaker as circuit_breaker
from penstock.pipeline import fallback as fallback
from penstock.pipeline import hedge as hedge
from penstock.pipeline import pausing as pausing
from penstock.pipeline import timeout as timeout
from penstock.retry import Attempt as Attempt
from penstock.retry import Budget as Budget
from penstock.retry import Retry as Retry
from penstock.retry import constant as constant
from penstock.retry import exponential as exponential
from penstock.retry import retry_after as retry_after
from penstock.statistics import Forecast as Forecast
from penstock.statistics import LimitStatistics as LimitStatistics
from penstock.statistics import Statistics as Statistics
