"""Several processes, one run: meeting, exchanging small values, and ending together.

Arrays cross hosts inside jitted programs. What the hosts say to each other beside that (scores, a wish to stop, a
failure) goes through the key-value store of JAX's coordination service, with a limit on every wait and the name of the
host that is missing. A process that dies is noticed by the service itself, which then ends the others.
"""

import itertools
import json
import logging
import os
import socket
import sys
import threading
import time
import zlib
from typing import Any

from jax_rl.errors import UserError
from jax_rl.parallel.cluster import Cluster, ClusterError

log = logging.getLogger(__name__)

_FAILURE = "jax_rl/failure"
_REACHED = "jax_rl/reached"
_POLL_SECONDS = 0.5
_GRACE_SECONDS = 4 * _POLL_SECONDS  # how long a failing process stays, so that the others read why


class HostError(RuntimeError):
    """A host that does not answer, or that told of its failure."""


def describe_failure(error: BaseException) -> str:
    """What all hosts are told of an error."""
    if isinstance(error, UserError):
        return str(error)
    text = f"{type(error).__name__}: {error}"
    if "by peer" in text:  # Gloo's words for a connection that the other end has lost
        text += " (another host has died: its own log or its scheduler says why)"
    return text


class Hosts:
    """The processes of the run. With one process every call returns at once.

    All processes call `gather` and `any` at the same points of the program, as with any collective.
    """

    def __init__(self, index: int, count: int, client: Any, timeout_sec: float) -> None:
        self.index, self.count = index, count
        self._client, self._timeout = client, timeout_sec
        self._calls = itertools.count()
        self._reached = (0, "the start", time.monotonic())
        self._names = ["this process"]
        if count > 1:
            self._names = [f"host {i}" for i in range(count)]
            self._watcher = threading.Thread(target=self._watch, daemon=True, name="watch-hosts")
            self._watcher.start()
            names = self.gather("names", socket.gethostname())
            self._names = [f"host {i} ({name})" for i, name in enumerate(names)]

    @property
    def is_first(self) -> bool:
        """The one that writes the logs."""
        return self.index == 0

    @property
    def name(self) -> str:
        return self._names[self.index]

    def gather(self, what: str, value: Any) -> list[Any]:
        """Every host's value (plain data, as JSON has it), in the hosts' order. `what` names it where one is missing.

        Raises:
            HostError: a host did not answer in time.
        """
        if self.count == 1:
            return [value]
        call = next(self._calls)
        self._client.key_value_set_bytes(f"jax_rl/{call}/{self.index}", zlib.compress(json.dumps(value).encode()))
        end = time.monotonic() + self._timeout
        answers = [self._answer(call, host, what, end) for host in range(self.count)]
        # whoever has all answers of this call has all of the one before it, and so has everybody
        if call >= 1:
            self._client.key_value_delete(f"jax_rl/{call - 1}/{self.index}")
        return answers

    def any(self, what: str, flag: bool) -> bool:
        """Whether the flag is up on any host: the same answer on all of them."""
        return any(self.gather(what, flag))

    def reach(self, what: str) -> None:
        """Says that this host goes into `what`, which all compute together. Waits for nobody.

        In there no wait has a limit. So the watching thread ends the run where another host has not come as far within
        the limit of an exchange.
        """
        if self.count > 1:
            number = self._reached[0] + 1
            self._client.key_value_set(f"{_REACHED}/{self.index}", str(number), allow_overwrite=True)
            self._reached = (number, what, time.monotonic())

    def own_rows(self, total: int) -> slice:
        """The rows, of so many, that this host works on: an even share, in one piece."""
        return slice(total * self.index // self.count, total * (self.index + 1) // self.count)

    def end_all(self, message: str, code: int) -> None:
        """Ends this process, and the others with this one's message; for a failure that no other process shares.

        Does nothing where there is one process. JAX's own shutdown would wait for the others, which wait for us.
        """
        if self.count == 1:
            return
        try:
            self._client.key_value_set(_FAILURE, json.dumps({"host": self.index, "message": message}))
        except RuntimeError as error:  # another host was first, or the service has gone: we end anyway
            log.debug("could not tell of the failure: %s", error)
        time.sleep(_GRACE_SECONDS)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    def leave_if_told(self) -> None:
        """Does not return where a failure has been told already: the caller's error is then what follows from it."""
        if self.count > 1 and self._failure() is not None:
            self._watcher.join()  # which prints that failure and ends the process

    def _answer(self, call: int, host: int, what: str, end: float) -> Any:
        left = max(1, int(1000 * (end - time.monotonic())))
        try:
            packed = self._client.blocking_key_value_get_bytes(f"jax_rl/{call}/{host}", left)
        except RuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
            raise HostError(
                f"{self._names[host]} did not say its {what} within {self._timeout:g} s (misc.host_timeout_sec)"
            ) from None
        return json.loads(zlib.decompress(packed))

    def _watch(self) -> None:
        """Ends this process when another one has told of its failure, and all when another one stays behind."""
        while True:
            time.sleep(_POLL_SECONDS)
            if late := self._late_host():
                log.error("%s", late)
                self.end_all(late, code=1)
            failure = self._failure()
            if failure is not None and failure["host"] != self.index:
                print(f"{self._names[failure['host']]} failed: {failure['message']}", file=sys.stderr, flush=True)
                if self.is_first:  # the service lives in this process: with it the others would end unheard
                    time.sleep(2 * _GRACE_SECONDS)
                os._exit(1)

    def _late_host(self) -> str | None:
        number, what, since = self._reached
        if number == 0 or time.monotonic() - since < self._timeout:
            return None
        for host, name in enumerate(self._names):
            try:
                behind = int(self._client.key_value_try_get(f"{_REACHED}/{host}")) < number
            except RuntimeError as error:
                behind = "NOT_FOUND" in str(error)
            if behind:
                return f"{name} did not come to {what} within {self._timeout:g} s (misc.host_timeout_sec)"
        return None

    def _failure(self) -> dict[str, Any] | None:
        """What some host, this one too, told of its failure."""
        try:
            return json.loads(self._client.key_value_try_get(_FAILURE))
        except RuntimeError:  # NOT_FOUND is the service's way to say that all is well
            return None


def join_hosts(cluster: Cluster | None, *, timeout_sec: float, heartbeat_sec: float, devices: int | None) -> Hosts:
    """Meets the other processes. To be called before JAX is used.

    Args:
        timeout_sec: longest wait for another host, at the start and in every exchange.
        heartbeat_sec: a process that is silent for this long is dead, and the run ends.
        devices: how many accelerators this process sees, where it is the only one of its host; None: JAX's choice.

    Raises:
        ClusterError: several processes were started on a host with GPUs.
        HostError: the others did not come.
    """
    if cluster is None:
        return Hosts(0, 1, None, timeout_sec)
    if devices and not cluster.whole_hosts:
        raise ClusterError(
            "several processes were started on one host, and each would take its GPUs; start one a host "
            "(srun --ntasks-per-node=1, torchrun --nproc-per-node=1, mpirun --npernode 1): it uses all of them"
        )
    import jax
    from jax._src import distributed  # the client has no public name

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            cluster.coordinator,
            cluster.processes,
            cluster.index,
            local_device_ids=list(range(devices)) if devices else None,
            cluster_detection_method=(
                "deactivate"
                if cluster.coordinator
                else cluster.launcher
                if cluster.launcher in ("slurm", "ompi")
                else None
            ),
            initialization_timeout=int(timeout_sec),
            heartbeat_timeout_seconds=int(heartbeat_sec),
            shutdown_timeout_seconds=30,
        )
    except (RuntimeError, ValueError) as error:
        raise HostError(f"the hosts did not meet within {timeout_sec:g} s (misc.host_timeout_sec): {error}") from error
    state = distributed.global_state
    return Hosts(state.process_id, state.num_processes, state.client, timeout_sec)


def require_whole_run(hosts: Hosts) -> None:
    """ClusterError where JAX's devices belong to more processes than have joined: each would be a run of its own."""
    import jax

    if jax.process_count() != hosts.count:
        raise ClusterError(
            f"JAX's devices belong to {jax.process_count()} processes, and this one knows of {hosts.count}; set "
            "JAX_COORDINATOR_ADDRESS=host:port of the first, JAX_NUM_PROCESSES and JAX_PROCESS_ID on each"
        )
