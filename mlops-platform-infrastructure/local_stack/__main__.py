"""Command line of the embedded stack: `python -m local_stack --help`."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

from local_stack import credentials, ports, settings
from local_stack.instance import DEFAULT_INSTANCE, Instance, open_instance
from local_stack.postgres import PostgresError
from local_stack.private_files import write_private
from local_stack.services import Service, table
from local_stack.supervisor import ServiceFailedError, Supervisor
from local_stack.wheels import MissingPackageError

EXPECTED = (ServiceFailedError, PostgresError, MissingPackageError, ports.NoFreePortError, ValueError)


def say(text: str) -> None:
    """Print a line of progress at once."""
    print(text, flush=True)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on `path`: one command at a time changes an instance."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another command works on this instance, waiting for it")
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def configure(instance: Instance) -> Supervisor:
    """Choose ports, make secrets, write the settings file, and return the supervisor of the instance."""
    instance.create_folders()
    secrets = credentials.load_or_create(instance.state_dir / "secrets.json")
    port_file = instance.state_dir / "ports.json"
    with locked(instance.local_dir / ".ports.lock"):
        recorded = ports.load(port_file)
        running = supervisor_for(instance, recorded, secrets)
        held = {
            p for name, service in running.services.items() if running.process(name) for p in service.ports
        }
        others = ports.recorded_by_others(instance.local_dir, port_file)
        chosen = ports.choose(recorded, held, avoid=others)
        ports.save(port_file, chosen)
    supervisor = supervisor_for(instance, chosen, secrets)
    write_private(
        instance.state_dir / "api_keys.json", credentials.api_keys_document(secrets["demo_api_key"])
    )
    write_private(instance.env_file, settings.render(settings.build(instance, chosen, secrets)))
    return supervisor


def supervisor_for(instance: Instance, chosen: dict[str, int], secrets: dict[str, str]) -> Supervisor:
    """Return the supervisor of an instance with these ports and secrets."""
    services = table(instance, chosen, secrets, settings.build(instance, chosen, secrets))
    return Supervisor(instance, services, say)


def existing(instance: Instance) -> Supervisor:
    """Return the supervisor of an instance that `up` made before; exits with a message when there is none."""
    secret_file = instance.state_dir / "secrets.json"
    settings_of(instance)
    return supervisor_for(
        instance, ports.load(instance.state_dir / "ports.json"), credentials.load_or_create(secret_file)
    )


def settings_of(instance: Instance) -> dict[str, str]:
    """Return the settings of an instance; exits with a message when `up` has not made them yet."""
    if not instance.env_file.exists():
        sys.exit(f"instance {instance.name!r} does not exist yet: make up-local, or python -m local_stack up")
    return settings.read(instance.env_file)


def up(instance: Instance, apis: bool) -> int:
    """Start what does not run and wait until it is healthy."""
    began = time.monotonic()
    with locked(instance.lock_file):
        supervisor = configure(instance)
        say(f"starting the stack in {instance.state_dir}")
        services = supervisor.services.items()
        supervisor.up([name for name, one in services if one.available and (apis or not one.optional)])
    say(f"up in {time.monotonic() - began:.1f} s; settings: {instance.env_file}")
    return 0


def down(instance: Instance) -> int:
    """Stop everything, also what still runs after its state was removed by hand."""
    began = time.monotonic()
    with locked(instance.lock_file):
        if instance.env_file.exists():
            supervisor = existing(instance)
        else:
            nothing = dict.fromkeys(credentials.GENERATORS, "")
            supervisor = supervisor_for(instance, ports.DEFAULT_PORTS, nothing)
        stopped = supervisor.down()
    seconds = time.monotonic() - began
    say(f"stopped {', '.join(stopped)} in {seconds:.1f} s" if stopped else "nothing ran")
    return 0


def status(instance: Instance, as_json: bool) -> int:
    """Show each service; exit 1 when one is dead or unhealthy."""
    supervisor = existing(instance)
    states = supervisor.status()
    broken = [state for state in states if state.state in ("dead", "unhealthy")]
    if as_json:
        print(json.dumps([asdict(state) for state in states], indent=1))
        return 1 if broken else 0
    for state in states:
        memory = f"{state.memory_mb} MB" if state.memory_mb else ""
        pid = state.pid or ""
        print(f"{state.title:<24} {state.state:<9} {pid:<8} {memory:>7}  {state.address:<24} {state.detail}")
    for state in broken:
        print(f"\n{state.name} is {state.state}. Last lines of its log:\n{supervisor.log_tail(state.name)}")
    return 1 if broken else 0


def logs(instance: Instance, services: list[str], lines: int, follow: bool) -> int:
    """Show the last log lines of the services."""
    supervisor = existing(instance)
    names = _known(supervisor, services) or list(supervisor.services)
    files = {name: instance.log_file(name) for name in names if instance.log_file(name).exists()}
    if follow and files:
        os.execvp("tail", ["tail", "-n", str(lines), "-F", *map(str, files.values())])
    for name in files:
        print(f"==> {name} <==\n{supervisor.log_tail(name, lines)}\n")
    return 0


def show_env(instance: Instance, show_secrets: bool) -> int:
    """Print the settings, secrets masked unless asked for."""
    variables = settings_of(instance)
    print(settings.render(variables if show_secrets else settings.masked(variables)), end="")
    return 0


def execute(instance: Instance, command: list[str]) -> int:
    """Become `command` with the settings in its environment."""
    if command and command[0] == "--":
        command = command[1:]
    if not command:
        sys.exit("exec: name a command, e.g. exec -- env")
    environment = {**os.environ, **settings_of(instance)}
    for name in ("NO_PROXY", "no_proxy"):  # what the caller reaches without a proxy stays so
        environment[name] = ",".join(filter(None, [os.environ.get(name), environment.get(name)]))
    try:
        os.execvpe(command[0], command, environment)
    except OSError as error:
        print(f"exec: {command[0]}: {error.strerror}", file=sys.stderr)
        return 127


def reset(instance: Instance, yes: bool) -> int:
    """Stop everything and remove the instance's data, after asking."""
    if not instance.state_dir.exists():
        say("nothing to remove")
        return 0
    if not yes:
        try:
            answer = input(f"Remove all data in {instance.state_dir}? [y/N] ")
        except EOFError:
            answer = "no: nobody is there to ask; --yes does not ask"
        if answer.strip().lower() not in ("y", "yes"):
            say("kept")
            return 1
    with locked(instance.lock_file):
        if instance.env_file.exists():
            existing(instance).down()
        shutil.rmtree(instance.state_dir)
    say(f"removed {instance.state_dir}")
    return 0


def one(instance: Instance, action: str, name: str) -> int:
    """Start, stop, restart or kill one service; starting it starts what it needs."""
    with locked(instance.lock_file):
        supervisor = configure(instance) if action == "start" else existing(instance)
        _known(supervisor, [name])
        if action == "kill":
            say(f"killed {name}" if supervisor.kill(name) else f"{name} does not run")
            return 0
        if action in ("stop", "restart"):
            say(f"stopped {name}" if supervisor.stop([name]) else f"{name} did not run")
        if action in ("start", "restart"):
            supervisor = configure(instance)
            supervisor.up(with_needs(supervisor.services, name))
    return 0


def _known(supervisor: Supervisor, names: list[str]) -> list[str]:
    unknown = [name for name in names if name not in supervisor.services]
    if unknown:
        sys.exit(f"no service {', '.join(unknown)}; there are {', '.join(supervisor.services)}")
    return names


def with_needs(services: Mapping[str, Service], name: str) -> list[str]:
    """Return a service and all it needs, in the table's order."""
    wanted = {name}
    for other in reversed(list(services)):
        if other in wanted:
            wanted |= set(services[other].needs)
    return [other for other in services if other in wanted]


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    result = argparse.ArgumentParser(prog="python -m local_stack", description=__doc__)
    result.add_argument(
        "--instance", default=DEFAULT_INSTANCE, help="name of an independent copy of the stack"
    )
    verbs = result.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("up", help="start everything that does not run, and wait until it is healthy")
    verb.add_argument("--apis", action="store_true", help="start the model services too")
    verbs.add_parser("down", help="stop everything; data stays")
    verb = verbs.add_parser("status", help="show each service; exit 1 when one is dead or unhealthy")
    verb.add_argument("--json", action="store_true")
    verb = verbs.add_parser("logs", help="show the last log lines")
    verb.add_argument("services", nargs="*")
    verb.add_argument("-n", "--lines", type=int, default=20)
    verb.add_argument("-f", "--follow", action="store_true")
    verb = verbs.add_parser("env", help="print the settings")
    verb.add_argument("--show-secrets", action="store_true")
    verb = verbs.add_parser("exec", help="run a command with the settings in its environment: exec -- CMD")
    verb.add_argument("command", nargs=argparse.REMAINDER)
    verb = verbs.add_parser("reset", help="stop everything and remove the instance's data")
    verb.add_argument("--yes", action="store_true", help="do not ask")
    for action in ("start", "stop", "restart", "kill"):
        verb = verbs.add_parser(action, help=f"{action} one service")
        verb.add_argument("service")
    return result


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    options = parser().parse_args(arguments)
    try:
        code = run(open_instance(options.instance), options)
        sys.stdout.flush()
        return code
    except EXPECTED as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; what was started keeps running until `down`", file=sys.stderr)
        return 130


def run(instance: Instance, options: argparse.Namespace) -> int:
    """Call the function of the verb."""
    verbs: dict[str, Callable[[], int]] = {
        "up": lambda: up(instance, options.apis),
        "down": lambda: down(instance),
        "status": lambda: status(instance, options.json),
        "logs": lambda: logs(instance, options.services, options.lines, options.follow),
        "env": lambda: show_env(instance, options.show_secrets),
        "exec": lambda: execute(instance, options.command),
        "reset": lambda: reset(instance, options.yes),
    }
    return verbs.get(options.verb, lambda: one(instance, options.verb, options.service))()


if __name__ == "__main__":
    sys.exit(main())
