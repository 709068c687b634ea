"""JAX profiler traces of chosen updates (docs/profiles.md)."""

import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
from jax.profiler import ProfileOptions, StepTraceAnnotation

log = logging.getLogger(__name__)


@contextmanager
def profile_update(output_dir: Path, update: int, chosen: Collection[int], host: int | None = None) -> Iterator[None]:
    """Traces what runs inside to `output_dir`/profile/update-N if `update` is one of the chosen.

    host: this process among several, which then has a folder of its own: JAX names the files after the machine, and two
        processes on one machine would write the same ones.
    """
    if update not in chosen:
        yield
        return
    folder = output_dir / "profile" / f"update-{update}"
    if host is not None:
        folder /= f"host-{host}"
    options = ProfileOptions()
    options.python_tracer_level = 0  # every call of every function would drown the rest
    with jax.profiler.trace(folder, profiler_options=options), StepTraceAnnotation("train", step_num=update):
        yield
    log.info("the profile of update %d is in %s", update, folder)
