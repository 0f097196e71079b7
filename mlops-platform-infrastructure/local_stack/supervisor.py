"""Starts, watches and stops the processes of an instance."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import psutil

from local_stack import health, processes
from local_stack.instance import Instance
from local_stack.services import Service

LOG_TAIL_LINES = 15
# What a service may read from the environment of whoever runs `up`; the rest would be chance.
INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "USER", "SSL_CERT_FILE", "LD_LIBRARY_PATH")


class ServiceFailedError(RuntimeError):
    """A service ended, or did not answer in time; names it and shows its last log lines."""

    def __init__(self, service: str, reason: str, log_tail: str) -> None:
        super().__init__(f"{service}: {reason}\n--- last lines of its log ---\n{log_tail}")
        self.service = service


@dataclass(frozen=True)
class ServiceState:
    """What `status` knows about one service. `state` is running, starting, dead or stopped."""

    name: str
    title: str
    state: str
    pid: int | None
    address: str
    detail: str


class Supervisor:
    """Starts and stops the services of one instance."""

    def __init__(
        self, instance: Instance, services: Mapping[str, Service], say: Callable[[str], None] = lambda _: None
    ) -> None:
        self.instance = instance
        self.services = services
        self.say = say
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def process(self, name: str) -> psutil.Process | None:
        """Return the running main process of a service, or None."""
        record = processes.load(self._record_path(name))
        return processes.find(record) if record else None

    def up(self, names: Iterable[str]) -> None:
        """Start the named services that do not run, in order of their needs, and wait until all are healthy.

        On a failure the services that are up stay up (a repeated `up` goes on from there), the failed one is
        stopped, and ServiceFailedError is raised.
        """
        waiting = {name: self.services[name] for name in names}
        deadlines: dict[str, float] = {}
        began: dict[str, float] = {}
        ready: set[str] = set()
        while waiting:
            for name, service in list(waiting.items()):
                if name not in began and all(
                    need in ready for need in service.needs if need in self.services
                ):
                    began[name] = time.monotonic()
                    deadlines[name] = began[name] + service.start_seconds
                    if self.process(name) is None:
                        self._spawn(service)
                if name in began and self._became_ready(service, deadlines[name]):
                    ready.add(name)
                    del waiting[name]
                    self.say(
                        f"  {service.title:<24} {service.address:<28} {time.monotonic() - began[name]:5.1f} s"
                    )
            time.sleep(0.05)

    def _became_ready(self, service: Service, deadline: float) -> bool:
        if self.process(service.name) is None:
            child = self._children.get(service.name)
            code = child.poll() if child else None
            self._kill_rest(service.name)
            raise self._failure(
                service.name, "ended at start" + (f" with code {code}" if code is not None else "")
            )
        try:
            service.check()
        except health.NotReadyError as error:
            if time.monotonic() < deadline:
                return False
            self.stop(service.name)
            raise self._failure(
                service.name, f"did not answer in {service.start_seconds:.0f} s: {error}"
            ) from error
        service.after_ready()
        return True

    def _failure(self, name: str, reason: str) -> ServiceFailedError:
        return ServiceFailedError(name, reason, self.log_tail(name))

    def _spawn(self, service: Service) -> None:
        self._kill_rest(service.name)
        self.instance.service_dir(service.name).mkdir(mode=0o700, parents=True, exist_ok=True)
        service.prepare()
        command = service.command()
        environment = {key: os.environ[key] for key in INHERITED if key in os.environ}
        environment |= {"NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost", **service.env}
        environment[processes.OWNER_VARIABLE] = self._owner(service.name)
        descriptor = os.open(
            self.instance.log_file(service.name), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600
        )
        try:
            child = subprocess.Popen(
                command,
                cwd=service.cwd,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=descriptor,
                stderr=descriptor,
                start_new_session=True,
            )
        finally:
            os.close(descriptor)
        self._children[service.name] = child
        mark = processes.start_mark(child.pid)
        assert mark is not None, "an unwaited child keeps its id"
        record = processes.ProcessRecord(child.pid, mark, time.time(), command)
        processes.save(self._record_path(service.name), record)

    def stop(self, name: str) -> bool:
        """Stop one service with all its processes; returns whether it ran."""
        service = self.services[name]
        process = self.process(name)
        members = processes.tree(process) if process else []
        if process:
            processes.send([process], service.stop_signal)
            processes.wait_ended(members, service.stop_seconds)
        self._kill_rest(name, members)
        self._record_path(name).unlink(missing_ok=True)
        return process is not None

    def kill(self, name: str) -> bool:
        """Kill one service without warning, as a crash would; its record stays, so `status` reports it dead."""
        process = self.process(name)
        if process is None:
            return False
        processes.send([process], signal.SIGKILL)
        processes.wait_ended([process], 10)
        self._kill_rest(name)
        return True

    def _kill_rest(self, name: str, members: Iterable[psutil.Process] = ()) -> None:
        """End what a service left behind: processes of its tree, and any that carry its mark."""
        rest = {process.pid: process for process in [*members, *processes.owned_by(self._owner(name))]}
        processes.send(rest.values(), signal.SIGKILL)
        left = processes.wait_ended(rest.values(), 10)
        if left:
            raise self._failure(name, f"processes {[process.pid for process in left]} can't be ended")

    def down(self) -> list[str]:
        """Stop every service, those that need others first; returns the names of those that ran."""
        return [name for name in reversed(self.services) if self.stop(name)]

    def status(self) -> list[ServiceState]:
        """Return the state of each service, asking those that run for their health."""
        return [self._state(service) for service in self.services.values()]

    def _state(self, service: Service) -> ServiceState:
        process = self.process(service.name)
        known = self._record_path(service.name).exists()
        state, detail = ("dead", "its process ended") if known else ("stopped", "")
        if process:
            try:
                service.check()
                state = "running"
                detail = health.readiness(service.ready_url) if service.ready_url else ""
            except health.NotReadyError as error:
                state, detail = "unhealthy", str(error).splitlines()[0]
        pid = process.pid if process else None
        return ServiceState(service.name, service.title, state, pid, service.address, detail)

    def log_tail(self, name: str, lines: int = LOG_TAIL_LINES) -> str:
        """Return the last lines of a service's log."""
        try:
            text = self.instance.log_file(name).read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return "(no log)"
        return "\n".join(text.splitlines()[-lines:]) or "(the log is empty)"

    def _owner(self, name: str) -> str:
        return f"{self.instance.state_dir}:{name}"

    def _record_path(self, name: str):  # type: ignore[no-untyped-def]
        return self.instance.run_dir / f"{name}.json"
