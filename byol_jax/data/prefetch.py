"""One thread that works ahead: takes items from an iterator and keeps a few of them ready, in order.

An exception in the thread is raised where the item is asked for. The thread holds no reference to its `Prefetch`: one
that nobody closes is stopped when it is collected, or when Python ends.
"""

import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

__all__ = ["Prefetch"]

_PATIENCE = 5.0
"""Seconds that `close` waits for the thread; it takes as long only where the iterator hangs."""


class _Item(NamedTuple):
    value: Any
    error: BaseException | None


_END = _Item(None, StopIteration())


def _work(items: Iterator[Any], slots: threading.Semaphore, ready: queue.SimpleQueue, stopped: threading.Event) -> None:
    while slots.acquire() and not stopped.is_set():
        try:
            ready.put(_Item(next(items), None))
        except StopIteration:
            ready.put(_END)
            return
        except BaseException as error:  # raised where the item is asked for
            ready.put(_Item(None, error))
            return


def _stop(thread: threading.Thread, slots: threading.Semaphore, ready: queue.SimpleQueue, stopped: threading.Event):
    stopped.set()
    slots.release()
    ready.put(_END)
    if thread is not threading.current_thread():  # the collector may run anywhere
        thread.join(_PATIENCE)


class Prefetch:
    """Items of `make_items(stopped)`, made ahead in a thread; `next` gives them in order.

    Args:
        make_items: called here with an event that is set by `close`; gives the iterator, which then lives in the
            thread and may end early once the event is set.
        depth: how many items may be ready or in the making, ≥ 1.

    Attributes:
        wait_seconds: how long `next` has waited in all.
    """

    def __init__(self, make_items: Callable[[threading.Event], Iterator[Any]], depth: int):
        self.wait_seconds = 0.0
        self._ready: queue.SimpleQueue[_Item] = queue.SimpleQueue()
        self._slots, self._stopped, self._failure = threading.Semaphore(depth), threading.Event(), None
        items = make_items(self._stopped)
        shared = (self._slots, self._ready, self._stopped)
        thread = threading.Thread(target=_work, args=(items, *shared), name="byol_jax images", daemon=True)
        self.close = weakref.finalize(self, _stop, thread, *shared)
        thread.start()

    def __next__(self) -> Any:
        if self._failure is not None:
            raise self._failure
        if self._stopped.is_set():
            raise StopIteration
        start = time.perf_counter()
        item = self._ready.get()
        self.wait_seconds += time.perf_counter() - start
        if item.error is not None:
            self._failure = item.error
            raise item.error
        self._slots.release()
        return item.value
