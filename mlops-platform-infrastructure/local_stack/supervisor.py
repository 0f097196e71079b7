"""Starts, watches and stops the processes of an instance."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from local_stack import health, processes
from local_stack.instance import Instance
from local_stack.services import Service
from local_stack.settings import LOOPBACK

LOG_TAIL_LINES = 15
LOG_LIMIT_BYTES = 16 * 1024 * 1024
# What a service may read from the environment of whoever runs `up`; the rest would be chance.
INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "USER", "SSL_CERT_FILE", "LD_LIBRARY_PATH")


class ServiceFailedError(RuntimeError):
    """A service ended, or did not answer in time; names it and shows its last log lines."""

    def __init__(self, service: str, reason: str, log_tail: str) -> None:
        super().__init__(f"{service}: {reason}\n--- last lines of its log ---\n{log_tail}")
        self.service = service


@dataclass(frozen=True)
class ServiceState:
    """What `status` knows about one service. `state` is running, unhealthy, dead or stopped; memory in MB."""

    name: str
    title: str
    state: str
    pid: int | None
    memory_mb: int | None
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

        A running service whose settings changed is restarted. On a failure ServiceFailedError is raised: the
        failed service is stopped, the others keep running, and a repeated `up` goes on from there.
        """
        waiting = {name: self.services[name] for name in names}
        began: dict[str, float] = {}
        while waiting:
            for name, service in list(waiting.items()):
                if name not in began:
                    if any(need in waiting for need in service.needs):
                        continue
                    began[name] = time.monotonic()
                    self._ensure_started(service)
                if self._became_ready(service, began[name]):
                    del waiting[name]
                    seconds = time.monotonic() - began[name]
                    self.say(f"  {service.title:<24} {service.address:<28} {seconds:5.1f} s")
            time.sleep(0.05)

    def _ensure_started(self, service: Service) -> None:
        record = processes.load(self._record_path(service.name))
        if record and processes.find(record):
            if record.settings_sha256 == _fingerprint(service):
                return
            self.say(f"  {service.title} runs with other settings: restarting it")
            self.stop([service.name])
        self._spawn(service)

    def _became_ready(self, service: Service, began: float) -> bool:
        process = self.process(service.name)
        if process is None:
            child = self._children.get(service.name)
            code = child.poll() if child else None
            self._end_rest(service)
            raise self._failure(service, "ended at start" + ("" if code is None else f" with code {code}"))
        try:
            service.check()
            foreign = not processes.listens(process, service.port)
            if foreign:
                raise health.NotReadyError(f"another program answers on port {service.port}")
            service.after_ready()
        except health.NotReadyError as error:
            if time.monotonic() - began < service.start_seconds:
                return False
            self.stop([service.name])
            reason = f"did not answer in {service.start_seconds:.0f} s: {error}"
            raise self._failure(service, reason) from error
        except health.RefusedError as error:
            self.stop([service.name])
            raise self._failure(service, str(error)) from error
        return True

    def _failure(self, service: Service, reason: str) -> ServiceFailedError:
        return ServiceFailedError(service.name, reason, self.log_tail(service.name))

    def _spawn(self, service: Service) -> None:
        self._end_rest(service)
        self.instance.service_dir(service.name).mkdir(mode=0o700, parents=True, exist_ok=True)
        service.prepare()
        environment = {key: os.environ[key] for key in INHERITED if key in os.environ}
        environment |= {"NO_PROXY": LOOPBACK, "no_proxy": LOOPBACK, **service.env}
        environment[processes.OWNER_VARIABLE] = self._owner(service)
        descriptor = self._open_log(service)
        try:
            child = subprocess.Popen(
                service.command(),
                cwd=service.cwd,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=descriptor,
                stderr=descriptor,
                start_new_session=True,  # a Ctrl-C in the terminal is not for the services
            )
        except OSError as error:
            raise self._failure(service, f"can't be started: {error}") from error
        finally:
            os.close(descriptor)
        self._children[service.name] = child
        mark = processes.start_mark(child.pid)
        assert mark is not None, "a child that was not waited for keeps its id"
        record = processes.ProcessRecord(child.pid, mark, time.time(), _fingerprint(service))
        processes.save(self._record_path(service.name), record)

    def _open_log(self, service: Service) -> int:
        path = self.instance.log_file(service.name)
        if path.exists() and path.stat().st_size > LOG_LIMIT_BYTES:
            path.replace(path.with_suffix(".log.1"))
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def stop(self, names: Iterable[str]) -> list[str]:
        """Stop services side by side, each with all its processes; returns the names of those that ran."""
        services = [self.services[name] for name in names]
        running = {service.name: process for service in services if (process := self.process(service.name))}
        members = {name: processes.tree(process) for name, process in running.items()}
        for service in services:
            if service.name in running:
                processes.send([running[service.name]], service.stop_signal)
        began = time.monotonic()
        for service in sorted(services, key=lambda service: service.stop_seconds):
            left = service.stop_seconds - (time.monotonic() - began)
            processes.wait_ended([p for name, p in running.items() if name == service.name], max(left, 0.0))
        ran = []
        for service in services:
            if self._end_rest(service, members.get(service.name, [])) or service.name in running:
                ran.append(service.name)
            self._record_path(service.name).unlink(missing_ok=True)
        return ran

    def down(self) -> list[str]:
        """Stop every service, those that need others first; returns the names of those that ran."""
        stopped: list[str] = []
        left = dict(self.services)
        while left:
            needed = {need for service in left.values() for need in service.needs}
            wave = [name for name in left if name not in needed]
            stopped += self.stop(wave)
            left = {name: service for name, service in left.items() if name in needed}
        return stopped

    def kill(self, name: str) -> bool:
        """Kill one service without warning, as a crash would; its record stays: `status` reports it dead."""
        process = self.process(name)
        if process is None:
            return False
        members = processes.tree(process)
        processes.send([process], signal.SIGKILL)
        processes.wait_ended(members, 5)  # helpers notice by themselves that they lost their parent
        self._end_rest(self.services[name], members)
        return True

    def members(self, name: str) -> list[psutil.Process]:
        """Return every process that carries a service's mark, also those without a record or a parent."""
        service = self.services[name]
        return processes.owned_by(self._owner(service), service.program, service.program_cwd)

    def _end_rest(self, service: Service, known: Iterable[psutil.Process] = ()) -> bool:
        """End what a service left behind: known processes of its tree, and any that carry its mark.

        Returns whether there was any that carries the mark.
        """
        marked = self.members(service.name)
        rest = {process.pid: process for process in [*known, *marked]}
        processes.send(rest.values(), signal.SIGKILL)
        left = processes.wait_ended(rest.values(), 10)
        if left:
            raise self._failure(service, f"processes {[process.pid for process in left]} can't be ended")
        for path in service.leftovers():
            path.unlink(missing_ok=True)
        return bool(marked)

    def status(self) -> list[ServiceState]:
        """Return the state of each service, asking those that run for their health."""
        return [self._state(service) for service in self.services.values()]

    def _state(self, service: Service) -> ServiceState:
        process = self.process(service.name)
        if process is None:
            state = "dead" if self._record_path(service.name).exists() else "stopped"
            return ServiceState(service.name, service.title, state, None, None, service.address, "")
        state, detail = "running", ""
        try:
            service.check()
            detail = health.readiness(service.ready_url) if service.ready_url else ""
        except (health.NotReadyError, health.RefusedError) as error:
            state, detail = "unhealthy", str(error).splitlines()[0]
        memory = round(processes.memory_bytes(processes.tree(process)) / 1e6)
        return ServiceState(service.name, service.title, state, process.pid, memory, service.address, detail)

    def log_tail(self, name: str, lines: int = LOG_TAIL_LINES) -> str:
        """Return the last lines of a service's log."""
        try:
            text = self.instance.log_file(name).read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return "(no log)"
        return "\n".join(text.splitlines()[-lines:]) or "(the log is empty)"

    def _owner(self, service: Service) -> str:
        return f"{self.instance.state_dir}:{service.name}"

    def _record_path(self, name: str) -> Path:
        return self.instance.run_dir / f"{name}.json"


def _fingerprint(service: Service) -> str:
    """Return a hash of what a service is started with, to notice a change; secrets stay unreadable."""
    text = json.dumps([service.command(), str(service.cwd), dict(service.env), service.fingerprint])
    return hashlib.sha256(text.encode()).hexdigest()
