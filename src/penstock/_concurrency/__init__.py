"""How a task or a thread waits and is woken: the only code that knows the event loop.

parking       wait and wake;  tasks: tasks that an object owns
locks         locks that no signal handler leaves held;  shared_state: nor a fork

What is waited for, and in which order, is decided above, in `_backends`.
"""
