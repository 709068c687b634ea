"""What a run starts with: the supervised model, or a checkpoint that it goes on from."""

import logging
from pathlib import Path

import jax

from jax_rl.checkpoints import CheckpointError, Checkpoints, is_checkpoint, read_meta, restore
from jax_rl.learning.optimizer import Optimizer, TrainState, abstract_train_state, init_train_state
from jax_rl.models.params import Params, abstract_params
from jax_rl.parallel.sharding import Layout, layout_of_sizes
from jax_rl.progress import Progress, changed_keys, config_dict
from jax_rl.setup import Run

log = logging.getLogger(__name__)


def start(run: Run, optimizer: Optimizer, checkpoints: Checkpoints) -> tuple[TrainState, Progress, bool]:
    """The state to go on from: a named checkpoint's, the newest one's, or the supervised model's."""
    path = _checkpoint_to_go_on_from(run, checkpoints)
    like = abstract_state(run, optimizer, run.layouts.policy)
    mesh = dict(run.layouts.policy.mesh.shape)
    if path is None:
        return init_train_state(run.load_trained(), optimizer, shardings_of(like)), Progress(mesh), False
    stored = abstract_state(run, optimizer, layout_of_sizes(read_meta(path)["mesh"]))
    state, meta = restore(path, like, stored)
    changed = changed_keys(meta["config"], config_dict(run.cfg))
    if changed:
        log.warning("resuming %s with other settings than it was saved with: %s", path, "; ".join(changed))
    log.info("resumed %s at update %d", path, meta["update"])
    return state, Progress.from_meta(meta, mesh), True


def weights_to_evaluate(run: Run) -> tuple[Params, Progress]:
    """What is trained alone, without the optimizer's state."""
    layout = run.layouts.policy
    progress = Progress(dict(layout.mesh.shape))
    path = _checkpoint_to_go_on_from(run, Checkpoints(run.output_dir, hosts=run.hosts))
    if path is None:
        return run.load_trained(), progress
    meta = read_meta(path)
    stored = layout_of_sizes(meta["mesh"])
    like, held = (
        {"params": abstract_params(run.trained_specs, run.trained_dtype, place.sharding_for)}
        for place in (layout, stored)
    )
    again = "; if its run has replaced it meanwhile, start again, or name a checkpoint-N"
    try:
        state, _ = restore(path, like, held)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}{again}") from error
    if not is_checkpoint(path) or read_meta(path)["update"] != meta["update"]:
        raise CheckpointError(f"{path} has changed while it was read{again}")
    log.info("evaluating %s, of update %d", path, meta["update"])
    return state["params"], Progress.from_meta(meta, progress.mesh)


def _checkpoint_to_go_on_from(run: Run, checkpoints: Checkpoints) -> Path | None:
    cfg = run.cfg.logging
    if cfg.resume_from_checkpoint:
        return Path(cfg.resume_from_checkpoint)
    return checkpoints.newest() if cfg.auto_resume else None


def abstract_state(run: Run, optimizer: Optimizer, layout: Layout) -> TrainState:
    """The training state as shapes with the shardings that it has on a mesh."""
    params = abstract_params(run.trained_specs, run.trained_dtype, layout.sharding_for)
    return abstract_train_state(params, optimizer, layout.replicated)


def shardings_of(state: TrainState) -> TrainState:
    return jax.tree.map(lambda leaf: leaf.sharding, state)
