"""XGBoost and LightGBM on Ray: each actor holds a part of the rows, and the library's own network joins them.

Ray only starts the processes and carries rows and model; what they add up during a fit goes through XGBoost's
collective or LightGBM's sockets. The actors stay between fits, since starting one takes seconds.
"""

from __future__ import annotations

import logging
import os
import socket
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from common_ml_utils.distributed.spark_session import LOOPBACK, ROOT, environment
from common_ml_utils.errors import BackendError, first_line
from common_ml_utils.preprocessing import Preprocessing
from common_ml_utils.training_backends import (
    BackendName,
    DistributionSettings,
    TrainingBackend,
    cause_of,
    lightgbm_dataset,
    require_histograms,
)

# Nothing is reported to Ray's makers.
QUIET = {"RAY_USAGE_STATS_ENABLED": "0"}
TIMEOUT = 120  # seconds to find each other
# Ray's own switch for machines without clusters: its servers bind to the loopback.
LOOPBACK_ONLY = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


class FitWorker:
    """One of the processes that fit together; Ray runs it as an actor."""

    def address(self) -> str:
        """Return where this process can be reached, with a port that is free now."""
        import ray

        host = ray.util.get_node_ip_address()
        with socket.socket() as probe:
            probe.bind((host, 0))
            return f"{host}:{probe.getsockname()[1]}"

    def fit_xgboost(
        self,
        rank: int,
        collective: Mapping[str, Any],
        parameters: Mapping[str, Any],
        rounds: int,
        data: tuple[np.ndarray, np.ndarray],
    ) -> bytes:
        """Fit together with the others; every worker ends with the same booster, the first one returns it."""
        import xgboost
        from xgboost.collective import CommunicatorContext

        with CommunicatorContext(**collective, dmlc_task_id=f"{rank:08}"):
            booster = xgboost.train(dict(parameters), xgboost.DMatrix(*data), num_boost_round=rounds)
            return bytes(booster.save_raw("ubj")) if rank == 0 else b""

    def fit_lightgbm(
        self,
        rank: int,
        parameters: Mapping[str, Any],
        preprocessing: Preprocessing,
        rounds: int,
        data: tuple[np.ndarray, np.ndarray],
    ) -> bytes:
        """Fit together with the others; every worker ends with the same booster, the first one returns it."""
        import lightgbm

        booster = lightgbm.train(
            dict(parameters), lightgbm_dataset(preprocessing, *data, parameters), num_boost_round=rounds
        )
        return booster.model_to_string().encode() if rank == 0 else b""


class RayBackend(TrainingBackend):
    """Starts Ray, or joins a running cluster, at the first fit and leaves it at `close`."""

    name: BackendName = "ray"

    def __init__(self, settings: DistributionSettings) -> None:
        super().__init__()
        self._settings = settings
        self._open = ExitStack()
        self._ray: Any = None
        self._actors: list[Any] = []

    def close(self) -> None:
        """Leave Ray; one that was started here is stopped."""
        self._ray, self._actors = None, []
        self._open.close()

    def check_xgboost(self, parameters: Mapping[str, Any]) -> None:
        """Raise BackendError for exact splits, which are not possible on parts of the rows."""
        require_histograms(self.name, parameters)

    def check_lightgbm(self) -> None:
        """Raise BackendError unless LightGBM's workers may open the ports that they meet on."""
        if not self._settings.lightgbm_open_ports:
            raise BackendError(
                "TRAINING_BACKEND=ray fits LightGBM through ports that its workers open to every address for "
                "the time of a fit: allow it with TRAINING_DISTRIBUTION__LIGHTGBM_OPEN_PORTS=true where no "
                "stranger reaches them, or use TRAINING_BACKEND=local"
            )

    def train_xgboost(
        self, parameters: Mapping[str, Any], matrix: np.ndarray, labels: np.ndarray, rounds: int
    ) -> Any:
        """Return the booster that Ray's workers fitted together."""
        import xgboost
        from xgboost.tracker import RabitTracker

        require_histograms(self.name, parameters)
        ray, workers = self._workers()
        tracker = RabitTracker(
            n_workers=len(workers), host_ip=ray.util.get_node_ip_address(), sortby="task", timeout=TIMEOUT
        )
        tracker.start()
        waiting = threading.Thread(target=tracker.wait_for, daemon=True)
        waiting.start()
        collective = tracker.worker_args()
        content = self._together(
            [
                worker.fit_xgboost.remote(rank, collective, dict(parameters), rounds, part)
                for rank, (worker, part) in enumerate(zip(workers, self._parts(matrix, labels), strict=True))
            ]
        )
        waiting.join(TIMEOUT)
        return xgboost.Booster(model_file=bytearray(content))

    def train_lightgbm(
        self,
        parameters: Mapping[str, Any],
        preprocessing: Preprocessing,
        matrix: np.ndarray,
        labels: np.ndarray,
        rounds: int,
    ) -> Any:
        """Return the booster that Ray's workers fitted together, `tree_learner=data`."""
        import lightgbm

        self.check_lightgbm()
        ray, workers = self._workers()
        machines = ray.get([worker.address.remote() for worker in workers])
        network = {
            "tree_learner": "data",
            "pre_partition": True,
            "num_machines": len(workers),
            "machines": ",".join(machines),
            "time_out": 2,  # minutes
        }
        content = self._together(
            [
                worker.fit_lightgbm.remote(
                    rank,
                    {**parameters, **network, "local_listen_port": int(machine.rsplit(":", 1)[1])},
                    preprocessing,
                    rounds,
                    part,
                )
                for rank, (worker, machine, part) in enumerate(
                    zip(workers, machines, self._parts(matrix, labels), strict=True)
                )
            ]
        )
        return lightgbm.Booster(model_str=without_addresses(content.decode()))

    def _parts(self, matrix: np.ndarray, labels: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return every worker's rows: every n-th one, so that each has its share of every time and class."""
        number = self._settings.workers
        return [(matrix[rank::number], labels[rank::number]) for rank in range(number)]

    def _together(self, fits: list[Any]) -> bytes:
        """Wait for all workers and return the model; one that fails ends the others."""
        ray, waiting = self._ray, list(fits)
        try:
            while waiting:
                done, waiting = ray.wait(waiting)
                ray.get(done)
            return ray.get(fits[0])
        except Exception as error:  # Ray wraps what a worker raised in types of its own
            self.close()  # the others wait for one that will not come
            raise BackendError(f"Ray did not fit the model: {cause_of(error)}") from error

    def _workers(self) -> tuple[Any, list[Any]]:
        """Return Ray and its actors, started if need be."""
        if self._ray is None:
            self._ray = self._open.enter_context(running_ray(self._settings))
            actor = self._ray.remote(num_cpus=1)(FitWorker)
            self._actors = [actor.remote() for _ in range(self._settings.workers)]
        return self._ray, self._actors


@contextmanager
def running_ray(settings: DistributionSettings) -> Iterator[Any]:
    """Yield Ray, started on this machine's loopback and stopped at the end, or joined at its address."""
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    local = settings.ray_address == "local"
    changed = {**QUIET, **(LOOPBACK_ONLY if local else {}), "PYTHONPATH": paths}
    with environment(changed), tempfile.TemporaryDirectory(prefix="ray-") as folder:
        import ray

        more: dict[str, Any] = {}
        if local:
            more = {
                "num_cpus": settings.workers,
                "include_dashboard": False,
                "object_store_memory": 256 * 1024 * 1024,
                "_node_ip_address": LOOPBACK,
                "_temp_dir": folder,
            }
        try:
            ray.init(
                settings.ray_address,
                logging_level=logging.WARNING,
                log_to_driver=False,
                configure_logging=False,
                **more,
            )
        except Exception as error:  # Ray has no common type for what can go wrong at its start
            raise BackendError(f"Ray at {settings.ray_address} did not start: {first_line(error)}") from error
        try:
            yield ray
        finally:
            ray.shutdown()


def without_addresses(model: str) -> str:
    """Return LightGBM's model text without the addresses it was fitted at, which differ from fit to fit."""
    lines = model.splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith(("[machines:", "[local_listen_port:")))
