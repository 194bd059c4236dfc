"""The application with all of its commands. Each command is in a file of its own."""

from penstock.cli import plan, quota, report, run, simulate, watch
from penstock.cli.frame import app

__all__ = ["app", "plan", "quota", "report", "run", "simulate", "watch"]
