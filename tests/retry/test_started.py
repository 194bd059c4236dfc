"""What a retried function returned, used in ways that are none of `await` and `with`: as a task, or not at all."""

from __future__ import annotations

import asyncio

import pytest

from penstock import Retry

RETRY = Retry(on=OSError, attempts=3)


class Request:
    """To be awaited or entered, as those of HTTP clients are; the first of them fail."""

    made = 0

    def __init__(self, failures):
        type(self).made += 1
        self.fails = type(self).made <= failures

    async def _answer(self):
        await asyncio.sleep(0)
        if self.fails:
            raise OSError
        return "answer"

    def __await__(self):
        return self._answer().__await__()

    async def __aenter__(self):
        return await self

    async def __aexit__(self, *error):
        pass


@pytest.fixture
def request_type():
    return type("Request", (Request,), {})


def retried(request_type):
    def request(failures):
        return request_type(failures)

    return RETRY(request)


def test_it_can_be_a_task_and_is_retried_there(request_type, virtual_time):
    async def main():
        return await asyncio.create_task(retried(request_type)(2))

    assert (asyncio.run(main()), request_type.made) == ("answer", 3)


def test_a_task_of_it_can_be_cancelled(request_type, virtual_time):
    async def main():
        task = asyncio.create_task(retried(request_type)(0))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert request_type.made == 1


@pytest.mark.parametrize("begun", [False, True])
def test_it_can_be_closed_before_its_end(request_type, begun):
    async def main():
        call = retried(request_type)(0)
        if begun:
            call.send(None)
        call.close()

    asyncio.run(main())
    assert request_type.made == 1


def test_a_file_that_an_async_function_opened_is_the_result(tmp_path):
    """It works with `with`, and is finished all the same."""
    (tmp_path / "x").touch()

    @RETRY
    async def opened():
        return (tmp_path / "x").open()

    with asyncio.run(opened()) as file:
        assert file.name == str(tmp_path / "x")


def test_an_argument_of_a_function_without_a_signature_is_known_by_its_number():
    def send(lines):
        next(lines)
        raise OSError

    send.__signature__ = "none"
    with pytest.raises(OSError) as caught:
        RETRY.call_sync(send, (line for line in "ab"))
    assert "used up the argument 1 of " in "".join(caught.value.__notes__)
