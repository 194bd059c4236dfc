"""How a task or a thread waits and is woken: the only code that knows the event loop."""
