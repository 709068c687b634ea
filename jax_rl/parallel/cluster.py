"""Which other processes belong to this run, as the launcher's environment tells of them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from jax_rl.errors import UserError

_RANKS = ("JAX_PROCESS_ID", "JOB_COMPLETION_INDEX", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "RANK")
_SIZES = ("JAX_NUM_PROCESSES", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "WORLD_SIZE")


class ClusterError(UserError):
    """An environment that names other processes but not how to reach them."""


@dataclass(frozen=True)
class Cluster:
    """What `jax.distributed.initialize` is told; None leaves a question to JAX, which asks the launcher."""

    launcher: str | None = None  # slurm, ompi, tpu: JAX finds address and numbers itself
    coordinator: str | None = None  # host:port of process 0
    processes: int | None = None
    index: int | None = None
    whole_hosts: bool = True  # one process a host, with all its devices; else several, for CPUs alone


def find_cluster(environ: Mapping[str, str]) -> Cluster | None:
    """The other processes of this run as the environment tells of them; None: there are none.

    JAX_NUM_PROCESSES=1 says that there are none. JAX_COORDINATOR_ADDRESS (or MASTER_ADDR and MASTER_PORT) wins, with
    the number of processes and this one's from JAX_NUM_PROCESSES and JAX_PROCESS_ID or from what the launcher sets;
    else Slurm, Open MPI and TPU pods are recognised as JAX recognises them.

    Raises:
        ClusterError: the address is there and a number is not, or the other way round.
    """
    if environ.get("JAX_NUM_PROCESSES") == "1":
        return None
    address = environ.get("JAX_COORDINATOR_ADDRESS")
    if not address and "MASTER_ADDR" in environ and "RANK" in environ:
        address = f"{environ['MASTER_ADDR']}:{environ.get('MASTER_PORT', '29500')}"
    whole_hosts = _one_task_a_node(environ)
    if address:
        processes, index = _number(environ, _SIZES), _number(environ, _RANKS)
        if processes is None or index is None:
            missing = "JAX_NUM_PROCESSES" if processes is None else "JAX_PROCESS_ID"
            raise ClusterError(f"the coordinator is {address}, but {missing} is not set; give the number, from 0 on")
        if not 0 <= index < processes:
            raise ClusterError(f"this is process {index} of {processes}; the numbers go from 0 to {processes - 1}")
        return Cluster(None, address, processes, index, whole_hosts) if processes > 1 else None
    if int(environ.get("SLURM_NTASKS", 1)) > 1 and "SLURM_STEP_NODELIST" in environ:
        return Cluster("slurm", whole_hosts=whole_hosts)
    if int(environ.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:
        if "OMPI_MCA_orte_hnp_uri" not in environ:
            raise ClusterError(
                "mpirun started several processes, but this version of it does not tell where the first one runs; "
                "set JAX_COORDINATOR_ADDRESS to host:port of that machine (mpirun -x JAX_COORDINATOR_ADDRESS=...)"
            )
        return Cluster("ompi", whole_hosts=whole_hosts)
    listed = environ.get("TPU_PROCESS_ADDRESSES") or environ.get("TPU_WORKER_HOSTNAMES") or ""
    if len(listed.split(",")) > 1 or (not listed and _is_pod_by_metadata()):
        return Cluster("tpu")
    if "KUBERNETES_SERVICE_HOST" in environ and "JOB_COMPLETION_INDEX" in environ:
        raise ClusterError(
            "this is a pod of a Kubernetes Indexed Job, which does not tell of the others; set JAX_COORDINATOR_ADDRESS "
            "and JAX_NUM_PROCESSES as configs/launch/jobset.yaml does, or JAX_NUM_PROCESSES=1 if each is its own run"
        )
    return None


def _is_pod_by_metadata() -> bool:
    """Whether this is one of several TPU machines of Compute Engine: no variable says so, its metadata server does."""
    from jax._src import cloud_tpu_init  # JAX's own detection has no public name
    from jax._src.clusters.cloud_tpu_cluster import GceTpuCluster

    return (
        cloud_tpu_init.running_in_cloud_tpu_vm
        and GceTpuCluster.is_env_present()
        and GceTpuCluster.get_process_count() > 1
    )


def _number(environ: Mapping[str, str], names: tuple[str, ...]) -> int | None:
    name = next((name for name in names if environ.get(name)), None)
    if name is None:
        return None
    if not environ[name].isdecimal():
        raise ClusterError(f"{name} is {environ[name]!r}; it must be a number")
    return int(environ[name])


def _one_task_a_node(environ: Mapping[str, str]) -> bool:
    tasks = environ.get("SLURM_STEP_TASKS_PER_NODE") or environ.get("SLURM_TASKS_PER_NODE") or "1"
    local = environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") or environ.get("LOCAL_WORLD_SIZE") or "1"
    return re.match(r"\d+", tasks + " ")[0] == "1" and local == "1"  # type: ignore[index]
