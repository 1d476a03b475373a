"""Work that threads do ahead of its consumer."""

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import TypeVar

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")


def run_ahead(
    plan: Callable[[Executor], Iterator[_Task]], work: Callable[[_Task], _Result], num_workers: int, prefetch: int
) -> Generator[_Result, None, None]:
    """Do tasks ahead, and hand out their results in order.

    Args:
        plan: gives the tasks one after the other, in a thread of its own; it may use the workers.
        work: is done by one of the workers for each task.
        num_workers: threads.
        prefetch: tasks that are begun before their results are asked for.
    """
    workers = ThreadPoolExecutor(num_workers, thread_name_prefix="speech-decoder")
    planner = ThreadPoolExecutor(1, thread_name_prefix="speech-planner")
    tasks = plan(workers)

    def start_next() -> Future[_Result] | None:
        for task in tasks:  # the next one only
            return workers.submit(work, task)
        return None

    try:
        ahead = deque(planner.submit(start_next) for _ in range(prefetch))
        while (working := ahead.popleft().result()) is not None:
            ahead.append(planner.submit(start_next))
            yield working.result()
    finally:  # also when the consumer stops early or a task fails: no thread outlives the loop
        planner.shutdown(cancel_futures=True)
        workers.shutdown(cancel_futures=True)
