"""How a task or a thread waits and is woken: the only code that knows the event loop.

parking       wait and wake;  tasks: tasks that an object owns
shared_state  locks that no fork and no signal leaves held

What is waited for, and in which order, is decided above, in `_backends`.
"""
