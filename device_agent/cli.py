"""The command ``pocketfleet-agent``."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from device_agent.config import (
    CONFIG_NAME,
    DATABASE_NAME,
    ENVIRONMENT_PREFIX,
    KEY_NAME,
    ROOT_NAME,
    AgentConfig,
    default_state_dir,
    load_config,
    render_config,
    require_server,
)
from device_agent.errors import AgentError, ConfigError, UntrustedMetadata
from device_agent.store import Database, write_durably

TELEMETRY_SWITCH = "ORT_DISABLE_TELEMETRY"
EXIT_CODES = """\
exit codes:
  0  done; for `once`: everything assigned is active, or nothing is assigned
  1  the agent itself failed
  2  wrong usage or configuration
  3  the server cannot be reached
  4  the server refused (not accepted yet, or protocol versions apart)
  5  something signed does not hold; nothing was installed because of it
  6  an assigned build failed or was rolled back
  7  another agent works in this state folder
  8  an assigned build still waits (`status` says for what)
"""
CONFIGURATION = f"""\
configuration: {CONFIG_NAME} in the state folder (written by `init`), overridden by the environment
  {ENVIRONMENT_PREFIX}SERVER, _PROVISIONING_KEY, _NAME, _ROOT, _TRUST_ON_FIRST_USE, _INFERENCE_HOST,
  _INFERENCE_PORT, _MAX_REQUEST_BYTES, _PROFILE, _TAGS (a,b), _THREADS, _REQUEST_TIMEOUT_S,
  _MINIMUM_RATE_BYTES_PER_S, _RETRY_BASE_S, _LOG_LEVEL; {ENVIRONMENT_PREFIX}STATE_DIR is the folder itself
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code.

    Started as a program (no ``arguments`` given) it first restarts itself with ONNX Runtime's
    usage reports switched off, if the environment does not do so yet.
    """
    if arguments is None and os.environ.get(TELEMETRY_SWITCH) != "1":
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | {TELEMETRY_SWITCH: "1"})  # noqa: S606
    options = _parser().parse_args(arguments)
    try:
        return int(options.command(options))
    except AgentError as error:
        print(f"pocketfleet-agent: {error}", file=sys.stderr)
        return error.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pocketfleet-agent",
        description="Keeps the models of this device as its fleet wants them, and serves them on loopback.",
        epilog=f"{CONFIGURATION}\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    init = _command(commands, "init", _init, "make the device key and write the configuration")
    init.add_argument(
        "--server", required=True, metavar="URL", help="control plane, e.g. https://fleet.example"
    )
    init.add_argument(
        "--provisioning-key", default="", metavar="KEY", help="key of the tenant to join (pfk_…)"
    )
    trust = init.add_mutually_exclusive_group(required=True)
    trust.add_argument("--root", type=Path, metavar="FILE", help="the tenant's TUF root to start trust from")
    trust.add_argument(
        "--trust-on-first-use",
        action="store_true",
        help="accept the first TUF root the server sends (only on a network you trust)",
    )
    init.add_argument("--name", default=platform.node()[:100], help="what operators see (default: host name)")
    init.add_argument("--port", type=int, default=0, help="port of the inference API (default: a free one)")
    init.add_argument("--profile", type=Path, metavar="FILE", help="TOML with hardware to emulate")
    init.add_argument("--tag", action="append", default=[], help="label for device filters; may be repeated")
    init.add_argument(
        "--threads", type=int, default=0, help="threads per session (default: cores, at most 4)"
    )
    _command(commands, "run", _run, "enrol if needed, then run until SIGTERM or SIGINT")
    _command(commands, "once", _once, "check in once: enrol, install what is assigned, report")
    _command(commands, "status", _status, "print the agent's state as JSON; works beside a running agent")
    return parser


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    function: Callable[[argparse.Namespace], int],
    text: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=text,
        description=text.capitalize() + ".",
        epilog=f"{CONFIGURATION}\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--state-dir", type=Path, default=default_state_dir(), help="folder of everything kept (%(default)s)"
    )
    parser.set_defaults(command=function)
    return parser


def _init(options: argparse.Namespace) -> int:
    from device_agent.transport import DeviceKey

    config = AgentConfig(
        server=options.server.rstrip("/"),
        provisioning_key=options.provisioning_key,
        name=options.name,
        trust_on_first_use=options.trust_on_first_use,
        inference_port=options.port,
        profile=str(options.profile.resolve()) if options.profile else "",
        tags=options.tag,
        threads=options.threads,
    )
    require_server(config)
    root = _read_root(options.root) if options.root else None
    state_dir: Path = options.state_dir
    state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    if root is not None:
        write_durably(state_dir / ROOT_NAME, root, mode=0o644)
    key = DeviceKey.load_or_create(state_dir / KEY_NAME)
    write_durably(state_dir / CONFIG_NAME, render_config(config))
    Database(state_dir / DATABASE_NAME).close()
    print(f"device key {key.public} in {state_dir}; next: pocketfleet-agent run --state-dir {state_dir}")
    return 0


def _run(options: argparse.Namespace) -> int:
    from device_agent.agent import lock_state, run_agent  # loads ONNX Runtime: only where it is needed

    config = _configure(options)
    with lock_state(options.state_dir):
        asyncio.run(run_agent(options.state_dir, config))
    return 0


def _once(options: argparse.Namespace) -> int:
    from device_agent.agent import CheckIn, Device, lock_state, status_of, summary

    config = _configure(options)
    with lock_state(options.state_dir):
        device = Device(options.state_dir, config)
        device.recover()
        check_in = CheckIn(device)
        try:
            check_in.run()
        except AgentError:
            with contextlib.suppress(AgentError):  # the first error is the one to tell
                check_in.send_reports(flush=True)
            raise
        check_in.send_reports(flush=True)
        outcome = check_in.outcome()
        device.close()
    print("\n".join(summary(status_of(options.state_dir))))
    return {"active": 0, "waiting": 8, "failed": 6, "refused": 5}[outcome]


def _status(options: argparse.Namespace) -> int:
    from device_agent.agent import status_of

    print(json.dumps(status_of(options.state_dir), indent=2))
    return 0


def _configure(options: argparse.Namespace) -> AgentConfig:
    config = load_config(options.state_dir)
    logging.basicConfig(
        level=config.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
        stream=sys.stderr,
    )
    for chatty in ("tuf", "uvicorn"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    require_server(config)
    return config


def _read_root(path: Path) -> bytes:
    from device_agent.trust import verify_root

    try:
        data = path.read_bytes()
        verify_root(data)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except UntrustedMetadata as error:
        raise ConfigError(
            f"{path} is not the signed TUF root metadata that --root expects ({error}); "
            "ask the operator for the tenant's root.json"
        ) from error
    return data
