"""Owned tasks: how their end is heard, and that nothing of it depends on who still waits or runs."""

from __future__ import annotations

import contextvars
import threading

import anyio
import pytest

from penstock import testing
from penstock._concurrency import tasks

pytestmark = pytest.mark.anyio


class Heard:
    def __init__(self):
        self.ends = []

    def __call__(self, value, error):
        self.ends.append((value, error))


async def value_after(seconds, value="value"):
    await anyio.sleep(seconds)
    return value


async def test_the_end_is_heard_once_with_the_value(virtual_time):
    heard = Heard()
    task = tasks.start(value_after, 1, landed=heard)
    assert not task.ended
    await tasks.join(task, task)
    assert task.ended
    assert heard.ends == [("value", None)]


@pytest.mark.parametrize("error", [KeyError("x"), KeyboardInterrupt()], ids=repr)
async def test_any_error_is_handed_over_and_none_ends_the_loop(virtual_time, error, anyio_backend_name):
    async def fail():
        raise error

    if anyio_backend_name == "asyncio" and isinstance(error, KeyboardInterrupt):
        return  # asyncio itself ends its loop then, whoever may be listening
    heard = Heard()
    await tasks.join(tasks.start(fail, landed=heard))
    assert heard.ends == [(None, error)]


async def test_a_cancellation_is_heard_and_is_no_exception(virtual_time):
    heard = Heard()
    task = tasks.start(value_after, 100, landed=heard)
    await anyio.sleep(1)
    task.cancel()
    await tasks.join(task)
    ((value, error),) = heard.ends
    assert value is None
    assert isinstance(error, BaseException)
    assert not isinstance(error, Exception)
    assert virtual_time.now() == 1


async def test_a_task_that_was_cancelled_before_it_began_is_heard_of_too(virtual_time):
    heard = Heard()
    task = tasks.start(value_after, 100, landed=heard)
    task.cancel()
    await tasks.join(task)
    assert len(heard.ends) == 1
    assert virtual_time.now() == 0


async def test_without_a_listener_nothing_is_told(virtual_time):
    await tasks.join(tasks.start(value_after, 1))


async def test_joining_waits_for_the_end_even_when_cancelled_and_is_cancelled_then(virtual_time):
    task = tasks.start(value_after, 10)
    with anyio.move_on_after(1) as scope:
        await tasks.join(task)
        await anyio.sleep(100)
    assert scope.cancelled_caught
    assert virtual_time.now() == 10


async def test_a_task_has_a_copy_of_its_starters_context(virtual_time):
    who = contextvars.ContextVar("who", default="nobody")

    async def ask():
        before = who.get()
        who.set("the task")
        return before

    heard = Heard()
    who.set("the starter")
    await tasks.join(tasks.start(ask, landed=heard))
    assert heard.ends == [("the starter", None)]
    assert who.get() == "the starter"


async def test_a_thread_can_have_something_called_in_the_loop(virtual_time):
    task = tasks.start(value_after, 100)
    threads = []

    def cancel():
        threads.append(threading.get_ident())
        task.cancel()

    await anyio.to_thread.run_sync(task.call_in_loop, cancel)
    await tasks.join(task)
    assert threads == [threading.get_ident()]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_nothing_is_called_in_a_loop_that_is_gone(backend):
    called = []

    async def main():
        task = tasks.start(value_after, 1)
        await tasks.join(task)
        return task

    task = testing.run(main, backend=backend)
    task.call_in_loop(lambda: called.append("called"))
    assert called == []


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_run_that_ends_cancels_what_it_still_runs(backend):
    heard = Heard()

    async def main():
        tasks.start(value_after, 100, landed=heard)
        await anyio.sleep(1)

    testing.run(main, backend=backend)
    ((_, error),) = heard.ends
    assert not isinstance(error, Exception)


async def test_the_running_loop_is_told_apart_by_identity():
    assert tasks.running_loop() is tasks.running_loop()


def test_without_a_loop_there_is_none_to_tell():
    with pytest.raises(RuntimeError, match="no running event loop"):
        tasks.running_loop()
