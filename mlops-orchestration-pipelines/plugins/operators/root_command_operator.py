"""The operator behind every task: one command of another root, in that root's environment."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

from airflow.sdk import BaseOperator, Context
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

from runners.container import ContainerRunner, ContainerSettings
from runners.kubernetes_api import KubernetesApi
from runners.kubernetes_job import JobSettings, KubernetesJobRunner
from runners.local_process import CommandFailedError, Layout, LocalProcessRunner, NotSetUpError

_REPOSITORY = Path(__file__).resolve().parents[3]
_LEFT_OUT = ("", "None", "False")


class CommandRunner(Protocol):
    """What runs a command of a root, here or in a container; see LocalProcessRunner.run."""

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
        """Run a command and give each line of its output to `on_line`."""

    def stop(self) -> None:
        """End the running command."""


# How a task reaches its root; `ROOT_COMMAND_RUNNER` chooses, so the DAG files are the same everywhere.
_RUNNERS: dict[str, Callable[[Mapping[str, str]], CommandRunner]] = {
    "local": lambda environ: LocalProcessRunner(Layout.from_environment(environ, _REPOSITORY)),
    "container": lambda environ: ContainerRunner(ContainerSettings.from_environment(environ)),
    "kubernetes": lambda environ: KubernetesJobRunner(
        KubernetesApi.from_environment(environ), JobSettings.from_environment(environ)
    ),
}


class RootCommandOperator(BaseOperator):
    """Runs `command` in `<repository>/<root>/<workdir>` and streams its output to the task's log.

    `options` are appended as `name value`: rendered to `True` the name stands alone; rendered to nothing,
    `None` or `False` it is left out. `${NAME}` in an argument is the setting of that name. `event_extra` is
    attached to the events of this task's outlets. A task whose `only_if` renders to nothing, `None` or
    `False` is skipped. A non-zero exit fails the task with the last lines.
    """

    template_fields: Sequence[str] = (
        "workdir",
        "command",
        "options",
        "environment",
        "event_extra",
        "only_if",
    )
    ui_color = "#e8f0fe"
    # Told every line beside the log: a console that shows how far a command is.
    watcher: ClassVar[Callable[[str], None] | None] = None

    def __init__(
        self,
        *,
        root: str,
        command: list[str],
        workdir: str = "",
        options: Mapping[str, str] | None = None,
        environment: Mapping[str, str] | None = None,
        event_extra: Mapping[str, str] | None = None,
        only_if: str = "True",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.root = root
        self.command = command
        self.workdir = workdir
        self.options = dict(options or {})
        self.environment = dict(environment or {})
        self.event_extra = dict(event_extra or {})
        self.only_if = only_if
        self._runner: CommandRunner | None = None

    def execute(self, context: Context) -> None:
        """Run the command; raises AirflowFailException (no retry) when the root is not set up."""
        if self.only_if in _LEFT_OUT:
            raise AirflowSkipException("this run does not ask for it")
        command = full_command(self.command, self.options)
        self.log.info("%s$ %s", Path(self.root, self.workdir), " ".join(command))
        try:
            self._runner = choose_runner(os.environ)
            self._runner.run(
                root=self.root,
                workdir=self.workdir,
                command=command,
                environ=os.environ,
                additions=self.environment,
                on_line=self._on_line,
            )
        except NotSetUpError as error:
            raise AirflowFailException(str(error)) from None
        except CommandFailedError as error:
            raise AirflowException(str(error)) from None
        for outlet in self.outlets if self.event_extra else ():
            context["outlet_events"][outlet].extra = dict(self.event_extra)

    def _on_line(self, line: str) -> None:
        self.log.info("%s", line)
        watcher = RootCommandOperator.watcher
        if watcher is not None:
            watcher(line)

    def on_kill(self) -> None:
        """End the command's process group: the task was cleared, timed out or its worker is stopping."""
        if self._runner is not None:
            self._runner.stop()


def full_command(command: Sequence[str], options: Mapping[str, str]) -> list[str]:
    """Append the rendered options that are set.

    >>> full_command(["load"], {"--source": "/in", "--replace": "True", "--date": "None"})
    ['load', '--source', '/in', '--replace']
    """
    words = list(command)
    for name, value in options.items():
        if value == "True":
            words.append(name)
        elif value not in _LEFT_OUT:
            words += [name, value]
    return words


def choose_runner(environ: Mapping[str, str]) -> CommandRunner:
    """Return the runner that `ROOT_COMMAND_RUNNER` names (default `local`)."""
    name = environ.get("ROOT_COMMAND_RUNNER") or "local"
    if name not in _RUNNERS:
        raise AirflowFailException(f"ROOT_COMMAND_RUNNER is {name!r}; known: {', '.join(sorted(_RUNNERS))}")
    return _RUNNERS[name](environ)
