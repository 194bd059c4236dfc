"""The application with all of its commands."""

from penstock.cli import plan, quota, report, run, simulate, watch
from penstock.cli.frame import app

__all__ = ["app", "plan", "quota", "report", "run", "simulate", "watch"]
