"""One process of a test with several: `hosts.py PORT COUNT INDEX ACTION`."""

import os
import signal
import sys
import time

from jax_rl.parallel.cluster import find_cluster
from jax_rl.parallel.multihost import HostError, join_hosts

port, count, index, action = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
environ = {
    "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
    "JAX_NUM_PROCESSES": str(count),
    "JAX_PROCESS_ID": str(index),
}
timeout = 4 if action in ("silent", "behind") else 20
hosts = join_hosts(find_cluster(environ), timeout_sec=timeout, heartbeat_sec=10, devices=None)
if action == "gather":
    for turn in range(20):
        assert hosts.gather("turn", {"turn": turn, "host": index, "text": "가" * 1000 * index}) == [
            {"turn": turn, "host": host, "text": "가" * 1000 * host} for host in range(count)
        ]
    assert hosts.any("flag", index == count - 1) and not hosts.any("flag", False)
    print(*[hosts.own_rows(25).indices(25)[:2]])
elif action == "raise":
    if index == 1:
        print("ValueError: the real reason", file=sys.stderr)
        hosts.end_all("ValueError: the real reason", 1)
    for _ in range(600):  # as where a collective fails because the other one has gone
        hosts.leave_if_told()
        time.sleep(0.1)
elif action == "silent":
    if index == 1:
        time.sleep(8)
        os._exit(0)
    try:
        hosts.gather("score", 1)
    except HostError as error:
        print(error, flush=True)
        os._exit(3)
elif action == "behind":
    for turn in range(3):
        hosts.reach(f"turn {turn}")
    if index == 0:
        hosts.reach("the program in which it waits")
    for _ in range(600):
        hosts.leave_if_told()
        time.sleep(0.1)
elif action == "killed":
    hosts.gather("start", 0)
    if index == count - 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)
