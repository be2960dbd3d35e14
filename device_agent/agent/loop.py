"""The agent's life: an event loop that polls, reports and serves until it is told to stop."""

from __future__ import annotations

import asyncio
import logging
import random
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from device_agent import capabilities
from device_agent.agent.check_in import CheckIn
from device_agent.agent.device import Device
from device_agent.config import AgentConfig
from device_agent.errors import AgentError
from device_agent.inference_api import InferenceServer, bind, build_application
from device_agent.transport import Backoff, jittered

log = logging.getLogger(__name__)

STOP_TIMEOUT_S = 3.0
LAST_REPORT_TIMEOUT_S = 1.0
REPORT_INTERVAL_S = (1.0, 30.0)
RETRY_CEILING_S = 30.0

T = TypeVar("T")


async def run_agent(
    state_dir: Path, config: AgentConfig, *, draw: Callable[[], float] = random.random
) -> None:
    """Run until SIGTERM or SIGINT, then stop within 5 s.

    Args:
        draw: uniform in [0, 1), for jitter.

    Raises:
        ConfigError: if the agent cannot start; once it runs, no server error ends it.
    """
    listener = bind(config.inference_host, config.inference_port)
    stop = threading.Event()
    asked = asyncio.Event()

    def end() -> None:
        stop.set()
        asked.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, end)
    device = Device(state_dir, config, stop=stop)
    host, port = listener.getsockname()[:2]
    device.identity.set_value("inference_address", f"{host}:{port}")
    await _in_thread(device.recover)
    application = build_application(
        device.runtime,
        meter=device.telemetry,
        version=capabilities.agent_version(),
        max_request_bytes=config.max_request_bytes,
    )
    server = InferenceServer(application)
    check_in = CheckIn(device)
    tasks = [
        asyncio.create_task(server.serve(sockets=[listener])),
        asyncio.create_task(_poll(device, check_in, asked, draw)),
        asyncio.create_task(_report(check_in, asked, draw)),
    ]
    log.info("serving on http://%s:%d", host, port)
    await asked.wait()
    server.stop()
    _, late = await asyncio.wait(tasks, timeout=STOP_TIMEOUT_S)
    if not late:  # a thread that is still at work may hold the database: leave it to the process's end
        await _last_report(check_in)
        device.close()
    log.info("stopped")


async def _poll(device: Device, check_in: CheckIn, asked: asyncio.Event, draw: Callable[[], float]) -> None:
    backoff = Backoff(draw, ceiling_s=RETRY_CEILING_S)
    while not asked.is_set():
        if await _attempt(check_in.run, "check-in"):
            backoff.reset()
            wait_s = jittered(check_in.poll_interval_s, draw)
        else:
            wait_s = backoff.next_s()
        due_s = device.installer.next_due_s()
        await _sleep(asked, wait_s if due_s is None else min(wait_s, due_s))


async def _report(check_in: CheckIn, asked: asyncio.Event, draw: Callable[[], float]) -> None:
    shortest, longest = REPORT_INTERVAL_S
    while not asked.is_set():
        await _attempt(check_in.send_reports, "report")
        await _sleep(asked, jittered(min(max(check_in.poll_interval_s, shortest), longest), draw))


async def _last_report(check_in: CheckIn) -> None:
    """What has been counted goes to the queue, and out if the server is quick; else at the next start."""
    try:
        await asyncio.wait_for(_in_thread(lambda: check_in.send_reports(flush=True)), LAST_REPORT_TIMEOUT_S)
    except (TimeoutError, AgentError):
        log.debug("the last report waits for the next start")


async def _attempt(action: Callable[[], None], name: str) -> bool:
    """Run a blocking action; errors are logged and never end the agent."""
    try:
        await _in_thread(action)
    except AgentError as error:
        log.warning("%s: %s", name, error)
    except Exception:
        log.exception("%s failed unexpectedly", name)
    else:
        return True
    return False


async def _sleep(asked: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(asked.wait(), seconds)
    except TimeoutError:
        return


async def _in_thread(action: Callable[[], T]) -> T:
    """Run ``action`` in a daemon thread: unlike an executor's, it cannot hold up the process's end."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        try:
            outcome: tuple[T | None, BaseException | None] = (action(), None)
        except BaseException as error:
            outcome = (None, error)
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, *outcome)

    threading.Thread(target=run, name="agent-work", daemon=True).start()
    return await future
