"""Runs a command of another root as a Kubernetes Job, in a pod made of that root's PodTemplate.

The templates stand in the namespace of the tasks, with everything a pod of theirs needs: image, settings,
secrets, volumes, limits. The annotation `mlops-platform/runs` says which root's folder, and what is below it,
each runs.
"""

from __future__ import annotations

import copy
import http.client
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from runners.kubernetes_api import ApiError, KubernetesApi
from runners.local_process import LAST_LINES, CommandFailedError, NotSetUpError, cleaned, ending, expand

RUNS = "mlops-platform/runs"
APP = "/app"
_NEVER_STARTS = {
    "InvalidImageName",
    "ErrImageNeverPull",
    "CreateContainerConfigError",
    "CreateContainerError",
}
_NOT_EXECUTABLE = (126, 127)
_SIGNALS = 32
_RECONNECTS = 10
_LOST = (OSError, http.client.HTTPException)

Document = dict[str, Any]


@dataclass(frozen=True)
class JobSettings:
    """How long a task's pod may take to start and to run, and how often it is looked at; seconds."""

    start_seconds: float = 600
    run_seconds: int = 21_600
    poll_seconds: float = 2

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> JobSettings:
        """Read `KUBERNETES_TASK_START_SECONDS` and `KUBERNETES_TASK_RUN_SECONDS`.

        >>> JobSettings.from_environment({"KUBERNETES_TASK_RUN_SECONDS": "60"}).run_seconds
        60
        """
        try:
            return cls(
                start_seconds=float(environ.get("KUBERNETES_TASK_START_SECONDS") or cls.start_seconds),
                run_seconds=int(environ.get("KUBERNETES_TASK_RUN_SECONDS") or cls.run_seconds),
            )
        except ValueError as error:
            raise NotSetUpError(
                f"KUBERNETES_TASK_START_SECONDS, KUBERNETES_TASK_RUN_SECONDS: {error}"
            ) from None


def choose_template(templates: Sequence[Document], root: str, workdir: str) -> Document:
    """Return the template whose place is the longest that the task's begins with.

    >>> def template(place): return {"metadata": {"annotations": {RUNS: place}}}
    >>> choose_template([template("a"), template("a/b")], "a", "b/c") == template("a/b")
    True
    """
    place = f"{root}/{workdir}/"

    def runs(template: Document) -> str:
        return str(template["metadata"].get("annotations", {}).get(RUNS, ""))

    fitting = [each for each in templates if runs(each) and place.startswith(f"{runs(each)}/")]
    if not fitting:
        raise NotSetUpError(f"no PodTemplate runs {place.rstrip('/')}: annotate one with {RUNS}")
    return max(fitting, key=lambda each: len(runs(each)))


def job(
    template: Document,
    name: str,
    argv: Sequence[str],
    *,
    workdir: str,
    additions: Mapping[str, str],
    seconds: int,
) -> Document:
    """Return the Job that runs `argv` once in a pod of the template.

    Kubernetes would replace `$(NAME)` in an argument; `$$` keeps it as it is.
    """
    pod = copy.deepcopy(template["template"])
    container = pod["spec"]["containers"][0]
    container["command"] = [word.replace("$(", "$$(") for word in argv]
    container.pop("args", None)
    container["workingDir"] = "/".join(part for part in (APP, workdir) if part)
    environment = {"PYTHONUNBUFFERED": "1"} | dict(additions)
    container["env"] = [
        *container.get("env", []),
        *({"name": key, "value": value.replace("$(", "$$(")} for key, value in environment.items()),
    ]
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "labels": {"app.kubernetes.io/name": "task"}},
        "spec": {
            # Airflow is who tries again.
            "backoffLimit": 0,
            "activeDeadlineSeconds": seconds,
            "ttlSecondsAfterFinished": 3600,
            "template": pod,
        },
    }


@dataclass
class KubernetesJobRunner:
    """Runs commands as Jobs; `stop` may be called from a signal handler while one runs."""

    api: KubernetesApi
    settings: JobSettings = JobSettings()
    _name: str = field(default="", init=False, repr=False)

    def run(
        self,
        *,
        root: str,
        workdir: str,
        command: Sequence[str],
        environ: Mapping[str, str],
        additions: Mapping[str, str],
        on_line: Callable[[str], None],
    ) -> None:
        """Run `command` in `/app/<workdir>` of the root's pod and give `on_line` each line of its output.

        The Job is deleted when it has ended. Raises NotSetUpError where template, image or right is missing,
        CommandFailedError on an exit code other than 0 and where the API can't be reached.
        """
        argv = [expand(argument, {**environ, **additions}) for argument in command]
        shown = f"`{' '.join(command)}` of {root}"
        last: deque[str] = deque(maxlen=LAST_LINES)
        name = self._name = f"task-{uuid.uuid4().hex[:16]}"
        try:
            templates = self.api.call("GET", "core/podtemplates")["items"]
            template = choose_template(templates, root, workdir)
            self.api.call(
                "POST",
                "batch/jobs",
                job(
                    template,
                    name,
                    argv,
                    workdir=workdir,
                    additions=additions,
                    seconds=self.settings.run_seconds,
                ),
            )
        except ApiError as error:
            raise NotSetUpError(f"{shown} can't be started: {error}") from None
        except _LOST as error:
            raise CommandFailedError(f"{shown} was not started: {error}") from None
        try:
            self._wait_for_start(name, shown)
            for line in self._lines(name):
                last.append(line)
                on_line(line)
            ended = self._ended(name, shown)
        except ApiError as error:
            raise CommandFailedError(f"{shown}: {error}") from None
        except _LOST as error:
            raise CommandFailedError(f"{shown}: the cluster's API was lost: {error}") from None
        finally:
            self._name = ""
            try:
                self._delete(name)
            except (ApiError, *_LOST) as error:
                on_line(f"(the Job {name} was not deleted and ends by itself: {error})")
        code = int(ended["exitCode"])
        if ended.get("reason") == "OOMKilled":
            last.append("(it needed more memory than its template gives)")
        if code in _NOT_EXECUTABLE or ended.get("reason") in {"StartError", "ContainerCannotRun"}:
            raise NotSetUpError(f"{shown} can't be run: {ended.get('message') or f'exit code {code}'}")
        if code != 0:
            output = "\n".join(f"  | {line}" for line in last) or "  (it printed nothing)"
            how = ending(128 - code if 128 < code < 128 + _SIGNALS else code)
            raise CommandFailedError(f"{shown} {how}; its last lines:\n{output}")

    def stop(self) -> None:
        """End the running Job: its pod gets SIGTERM, and after the template's grace SIGKILL."""
        if self._name:
            self._delete(self._name)

    def _pod(self, name: str) -> Document | None:
        """Return the pod of the Job `name`: there is one at most, since nothing is tried twice."""
        selector = f"batch.kubernetes.io/job-name={name}"
        pods = self.api.call("GET", "core/pods", labelSelector=selector)["items"]
        return pods[0] if pods else None

    def _wait_for_start(self, name: str, shown: str) -> None:
        """Wait until the pod's container runs or has ended."""
        deadline = time.monotonic() + self.settings.start_seconds
        why = "no pod was made: is the quota used up?"
        while time.monotonic() < deadline:
            pod = self._pod(name)
            if pod is not None:
                state = _state(pod)
                if "running" in state or "terminated" in state:
                    return
                waiting = state.get("waiting", {})
                why = waiting.get("message") or waiting.get("reason") or _unschedulable(pod) or why
                if waiting.get("reason") in _NEVER_STARTS:
                    raise NotSetUpError(f"{shown} can't be started: {why}")
            time.sleep(self.settings.poll_seconds)
        raise CommandFailedError(f"{shown} was not started: {why}")

    def _lines(self, name: str) -> Iterator[str]:
        """Yield the lines of the pod's log, each once, also where the connection breaks."""
        newest, failures = "", 0
        while (pod := self._pod(name)) is not None:
            # Looked at before the log is read: what it says after its end is then in the log.
            finished = "terminated" in _state(pod)
            seen, since = newest, {"sinceTime": newest} if newest else {}
            path = f"core/pods/{pod['metadata']['name']}/log"
            try:
                for line in self.api.lines(path, follow="true", timestamps="true", **since):
                    stamp, _, text = line.decode(errors="replace").partition(" ")
                    # A repeated connection begins at a whole second: what was seen is not given again.
                    if stamp <= seen:
                        continue
                    newest, failures = stamp, 0
                    if shown := cleaned(text):
                        yield shown
            except _LOST:
                failures += 1
                if failures > _RECONNECTS:
                    raise
                finished = False
            if finished:
                return
            time.sleep(self.settings.poll_seconds)

    def _ended(self, name: str, shown: str) -> Document:
        pod = self._pod(name)
        ended: Document | None = None if pod is None else _state(pod).get("terminated")
        if ended is None:
            raise CommandFailedError(f"{shown} was ended: its pod is gone")
        return ended

    def _delete(self, name: str) -> None:
        try:
            self.api.call("DELETE", f"batch/jobs/{name}", propagationPolicy="Background")
        except ApiError as error:
            if error.status != 404:
                raise


def _state(pod: Document) -> Document:
    """Return the state of the pod's container: waiting, running or terminated; nothing before it has one."""
    statuses = pod.get("status", {}).get("containerStatuses") or [{}]
    state: Document = statuses[0].get("state") or {}
    return state


def _unschedulable(pod: Document) -> str:
    conditions = pod.get("status", {}).get("conditions") or []
    return next((c.get("message", "") for c in conditions if c.get("reason") == "Unschedulable"), "")
