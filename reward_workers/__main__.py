"""`python reward_workers metricx|xcomet --fd N --parent PID`: a reward model as a process of its own.

Runs in any Python that has the model's requirements; nothing of this project has to be installed there.
"""

import argparse
import importlib
import importlib.util
import os
import sys

WORKERS = ("metricx", "xcomet")


def main() -> None:
    parser = argparse.ArgumentParser(prog="reward_workers", description=__doc__)
    parser.add_argument("worker", choices=WORKERS)
    _make_importable()
    from reward_workers import serve

    serve.add_channel_arguments(parser)
    arguments = parser.parse_args()
    channel = serve.open_channel(arguments)
    module = importlib.import_module(f"reward_workers.{arguments.worker}.worker")
    serve.serve(channel, module.load)


def _make_importable() -> None:
    """Makes this package, and nothing beside it, importable.

    Its parent folder must not come onto the path: it may be the trainer's site-packages, whose libraries would then
    hide or replace the worker's own. Nor may its own folder, which Python has put there.
    """
    folder = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != folder]
    spec = importlib.util.spec_from_file_location(
        "reward_workers", os.path.join(folder, "__init__.py"), submodule_search_locations=[folder]
    )
    assert spec is not None and spec.loader is not None  # the file exists: this one lies beside it
    package = importlib.util.module_from_spec(spec)
    sys.modules["reward_workers"] = package
    spec.loader.exec_module(package)


if __name__ == "__main__":
    main()
