"""What hosts say to each other, and how they end together; each is a real process."""

import signal
from pathlib import Path

import pytest

from jax_rl.parallel.cluster import Cluster, ClusterError, find_cluster
from jax_rl.parallel.multihost import Hosts, join_hosts, require_whole_run

HOSTS = str(Path(__file__).with_name("hosts.py"))


@pytest.fixture
def hosts(run_together, free_port):
    def run(action, count=2):
        port = str(free_port())
        return run_together([([HOSTS, port, str(count), str(i), action], {}) for i in range(count)])

    return run


def test_values_are_gathered_in_the_hosts_order(hosts):
    ended = hosts("gather", count=3)
    assert [e.code for e in ended] == [0, 0, 0]
    assert [e.output.splitlines()[-1] for e in ended] == ["(0, 8)", "(8, 16)", "(16, 25)"]


def test_a_failure_ends_all_with_its_message(hosts):
    first, second = hosts("raise")
    assert (first.code, second.code) == (1, 1)
    assert "host 1" in first.output and "failed: ValueError: the real reason" in first.output
    assert max(first.seconds, second.seconds) < 30


def test_a_wait_ends_and_names_the_host(hosts):
    first, _ = hosts("silent")
    assert first.code == 3
    assert "host 1" in first.output and "did not say its score within 4 s (misc.host_timeout_sec)" in first.output


def test_a_host_that_stays_behind_ends_all(hosts):
    first, second = hosts("behind")
    assert (first.code, second.code) == (1, 1)
    for output in (first.output, second.output):
        assert "host 1" in output and "did not come to the program in which it waits within 4 s" in output


def test_a_killed_process_ends_the_others(hosts):
    first, second = hosts("killed")
    assert second.code == -signal.SIGKILL
    assert first.code == -signal.SIGABRT
    assert "unhealthy" in first.output or "heartbeat" in first.output


@pytest.mark.parametrize(
    "environ, cluster",
    [
        ({}, None),
        ({"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}, None),
        (
            {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"},
            Cluster(None, "a:1", 4, 3),
        ),
        (
            {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "4", "JOB_COMPLETION_INDEX": "2"},
            Cluster(None, "a:1", 4, 2),
        ),
        (
            {"MASTER_ADDR": "m", "MASTER_PORT": "7", "RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"},
            Cluster(None, "m:7", 2, 1, whole_hosts=False),
        ),
        (
            {"SLURM_NTASKS": "2", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_STEP_TASKS_PER_NODE": "1(x2)"},
            Cluster("slurm"),
        ),
        (
            {"SLURM_NTASKS": "16", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_STEP_TASKS_PER_NODE": "8(x2)"},
            Cluster("slurm", whole_hosts=False),
        ),
        ({"SLURM_NTASKS": "2"}, None),  # sbatch without srun: one process
        (
            {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_MCA_orte_hnp_uri": "x", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"},
            Cluster("ompi", whole_hosts=False),
        ),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, Cluster("tpu")),
        ({"TPU_PROCESS_ADDRESSES": "a:1,b:1"}, Cluster("tpu")),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
        ({"JAX_NUM_PROCESSES": "1", "KUBERNETES_SERVICE_HOST": "k", "JOB_COMPLETION_INDEX": "3"}, None),
    ],
)
def test_launchers_are_recognised(environ, cluster):
    assert find_cluster(environ) == cluster


@pytest.mark.parametrize(
    "environ, message",
    [
        ({"JAX_COORDINATOR_ADDRESS": "a:1"}, "JAX_NUM_PROCESSES is not set"),
        ({"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2"}, "JAX_PROCESS_ID is not set"),
        ({"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "x", "RANK": "0"}, "JAX_NUM_PROCESSES is 'x'"),
        ({"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2", "RANK": "2"}, "process 2 of 2"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "set JAX_COORDINATOR_ADDRESS"),
        ({"KUBERNETES_SERVICE_HOST": "k", "JOB_COMPLETION_INDEX": "0"}, "JAX_NUM_PROCESSES=1 if each is its own run"),
    ],
)
def test_half_told_environments_are_refused(environ, message):
    with pytest.raises(ClusterError, match=message):
        find_cluster(environ)


def test_several_processes_on_one_host_with_gpus_are_refused():
    with pytest.raises(ClusterError, match="start one a host"):
        join_hosts(Cluster(None, "a:1", 16, 3, whole_hosts=False), timeout_sec=1, heartbeat_sec=1, devices=8)


def test_a_run_that_knows_of_other_processes_than_jax_is_refused(monkeypatch):
    require_whole_run(Hosts(0, 1, None, 1.0))
    monkeypatch.setattr("jax.process_count", lambda: 16)  # as on a TPU pod that was not recognised
    with pytest.raises(ClusterError, match="belong to 16 processes, and this one knows of 1; set JAX_COORDINATOR"):
        require_whole_run(Hosts(0, 1, None, 1.0))
