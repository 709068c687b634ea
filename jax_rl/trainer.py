"""The loop: prompts -> rollout -> score -> advantages -> update -> log -> save."""

import logging
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import jax
import yaml

from jax_rl.checkpoints import Checkpoints, read_meta, restore
from jax_rl.config import Config, dump_config
from jax_rl.evaluate import EvalReport, evaluate, summarize
from jax_rl.experience import Experience, RunStopped, collect_experience
from jax_rl.learning.optimizer import (
    Optimizer,
    TrainState,
    abstract_train_state,
    init_train_state,
    make_optimizer,
)
from jax_rl.learning.programs import UpdatePrograms, make_programs
from jax_rl.learning.update import run_update
from jax_rl.models.hf_export import save_model
from jax_rl.models.params import abstract_params
from jax_rl.parallel.arrays import to_host
from jax_rl.parallel.sharding import Layout, layout_of_sizes
from jax_rl.runlog.profiles import profile_update
from jax_rl.runlog.run_log import NoLog, RunLog
from jax_rl.runlog.tables import Evaluated, print_report
from jax_rl.runlog.timing import PhaseClock
from jax_rl.setup import Run, open_run
from jax_rl.stopping import stop_on_sigterm

log = logging.getLogger(__name__)


@dataclass
class Progress:
    """Where a run is, besides its arrays: what `meta.json` of a checkpoint holds."""

    mesh: dict[str, int]  # sizes of the policy's mesh, which decide in what shapes parameters are held
    update: int = 0
    best_score: float | None = None
    best_update: int | None = None
    baseline: EvalReport | None = None  # of update 0
    latest: EvalReport | None = None
    latest_update: int | None = None

    def to_meta(self, cfg: Config) -> dict:
        return {
            "update": self.update,
            "data_position": {"next_update": self.update + 1, "prompts_drawn": self.update * cfg.rl.batch_size},
            "config": config_dict(cfg),
            "mesh": self.mesh,
            "best_score": self.best_score,
            "best_update": self.best_update,
            "baseline": self.baseline.to_json() if self.baseline else None,
            "latest": self.latest.to_json() if self.latest else None,
            "latest_update": self.latest_update,
        }

    @classmethod
    def from_meta(cls, meta: dict, mesh: dict[str, int]) -> "Progress":
        return cls(
            mesh=mesh,
            update=meta["update"],
            best_score=meta["best_score"],
            best_update=meta["best_update"],
            baseline=EvalReport.from_json(meta["baseline"]) if meta["baseline"] else None,
            latest=EvalReport.from_json(meta["latest"]) if meta["latest"] else None,
            latest_update=meta["latest_update"],
        )


def train(cfg: Config) -> None:
    """Trains until `rl.updates`, from the newest checkpoint if there is one. SIGTERM saves and ends the run early.

    Raises:
        UserError: the inputs are not what they must be; nothing was written over.
        RunStopped: the run cannot go on; its state is saved.
    """
    with open_run(cfg) as run, stop_on_sigterm() as stop:
        optimizer = make_optimizer(cfg.rl)
        programs = make_run_programs(run, optimizer)
        keep, best_only = cfg.logging.keep_last_n_checkpoints, cfg.logging.save_only_best
        checkpoints = Checkpoints(run.output_dir, keep, best_only, run.hosts)
        state, progress, resumed = start(run, optimizer, checkpoints)
        for kept in checkpoints.set_aside_after(progress.update if resumed else -1):
            log.warning("a checkpoint past the start of this run is kept as %s", kept)
        with _open_log(run, progress.update if resumed else None) as run_log:
            if progress.update == 0 and progress.baseline is None and cfg.eval.run_before_train:
                _evaluate(run, state, progress, run_log)
            while progress.update < cfg.rl.updates:
                with _profiled(run, progress.update + 1):
                    state = _one_update(run, state, progress, programs, checkpoints, run_log)
                last = progress.update == cfg.rl.updates
                if last or _is_due(progress.update, cfg.eval.eval_every_n_updates):
                    _evaluate(run, state, progress, run_log)
                stopping = run.hosts.any("wish to stop", stop.requested)
                if last or stopping or _is_due(progress.update, cfg.logging.save_every_n_updates):
                    checkpoints.save(state, progress.to_meta(cfg))
                if stopping and not last:
                    log.warning("SIGTERM: saved after update %d; the same command goes on from there", progress.update)
                    return
            _save_model(run, "final", state)
            run_log.finish(*_before_and_after(progress, cfg))


def make_run_programs(run: Run, optimizer: Optimizer) -> UpdatePrograms:
    """The programs of the run's updates, for its model on the policy's mesh."""
    model, layout = run.model, run.layouts.policy
    return make_programs(
        model.forward,
        model.unembed,
        optimizer,
        run.cfg.rl,
        run.cfg.generation.max_new_tokens,
        run.lora_scale,
        layout,
        shardings_of(abstract_state(run, optimizer, layout)),
        shares_prompts=model.shares_prompts,
    )


def start(run: Run, optimizer: Optimizer, checkpoints: Checkpoints) -> tuple[TrainState, Progress, bool]:
    """The state to go on from: a named checkpoint's, the newest one's, or the supervised model's."""
    cfg = run.cfg.logging
    path = Path(cfg.resume_from_checkpoint) if cfg.resume_from_checkpoint else None
    if path is None and cfg.auto_resume:
        path = checkpoints.newest()
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


def abstract_state(run: Run, optimizer: Optimizer, layout: Layout) -> TrainState:
    """The training state as shapes with the shardings that it has on a mesh."""
    params = abstract_params(run.trained_specs, run.trained_dtype, layout.sharding_for)
    return abstract_train_state(params, optimizer, layout.replicated)


def shardings_of(state: TrainState) -> TrainState:
    return jax.tree.map(lambda leaf: leaf.sharding, state)


def _one_update(
    run: Run,
    state: TrainState,
    progress: Progress,
    programs: UpdatePrograms,
    checkpoints: Checkpoints,
    run_log: RunLog | NoLog,
) -> TrainState:
    cfg, update, clock = run.cfg, progress.update + 1, PhaseClock()
    try:
        experience = collect_experience(run, state.params, update, clock)
    except (Exception, KeyboardInterrupt) as error:  # collecting changes no state, so the state can be saved
        if run.hosts.count == 1 or isinstance(error, RunStopped):  # else it may be this host's alone: no joint save
            checkpoints.save(state, progress.to_meta(cfg))
        raise
    run.hosts.reach(f"the optimizer steps of update {update}")
    with clock.phase("update"):
        state, stats = run_update(state, experience.update_batch(), programs, cfg.rl, run.frozen)
    progress.update = update
    run_log.train(update, _train_row(experience, stats, clock, cfg))
    if cfg.logging.save_rollouts:
        run_log.rollouts(experience.output_rows(update))
    if int(state.skipped_in_row) >= cfg.rl.max_skipped_steps:
        checkpoints.save(state, progress.to_meta(cfg))
        raise RunStopped(
            f"{int(state.skipped_in_row)} optimizer steps in a row had a loss or gradient that is not finite "
            f"(rl.max_skipped_steps {cfg.rl.max_skipped_steps}); the state is saved as of update {update}"
        )
    return state


def _profiled(run: Run, update: int) -> AbstractContextManager[None]:
    host = run.hosts.index if run.hosts.count > 1 else None
    return profile_update(run.output_dir, update, run.cfg.misc.profile_updates, host)


def _train_row(experience: Experience, stats: dict[str, float | None], clock: PhaseClock, cfg: Config) -> dict:
    tokens = float(experience.batch.mask.sum())
    return {
        **experience.figures(cfg.reward.metricx.offset),
        **stats,
        "learning_rate": cfg.rl.lr,
        **clock.seconds(),
        "rollout_tokens_per_second": tokens / clock.of("rollout"),
        "update_tokens_per_second": tokens / clock.of("update"),
    }


def _evaluate(run: Run, state: TrainState, progress: Progress, run_log: RunLog | NoLog) -> None:
    """Evaluates, logs, and keeps the best model. A baseline of update 0 is what later reports are compared with."""
    if not run.eval_prompts:
        return
    cfg, first = run.cfg, progress.update == 0
    clock = PhaseClock()
    run.hosts.reach("the evaluation")
    with clock.phase("eval"):
        report = evaluate(
            run.engine,
            run.rollout_policy(state.params),
            run.tokenizer,
            run.eval_prompts,
            run.scorer,
            cfg,
            with_baseline_temperature=first,
        )
    row = summarize(report, progress.baseline, cfg)
    run_log.evaluation(progress.update, row | {"seconds_eval": clock.of("eval")})
    if cfg.logging.save_eval_outputs:
        run_log.eval_outputs([{"update": progress.update, **output} for output in report.outputs])
    if first:
        progress.baseline = report
    progress.latest, progress.latest_update = report, progress.update
    score = row["model_select_score"]
    if not first and score is not None and (progress.best_score is None or score > progress.best_score):
        progress.best_score, progress.best_update = score, progress.update
        _save_model(run, "best", state)


def _save_model(run: Run, name: str, state: TrainState) -> None:
    policy, first = run.policy(state.params), run.hosts.is_first
    save_model(run.output_dir / name, run.model, policy, run.policy_folder, to_host=to_host, write=first)


def _open_log(run: Run, resume_update: int | None) -> RunLog | NoLog:
    if not run.hosts.is_first:
        return NoLog()
    (run.output_dir / "resolved_config.yaml").write_text(dump_config(run.cfg))
    return RunLog(run.output_dir, run.cfg, resume_update)


def _before_and_after(progress: Progress, cfg: Config) -> tuple[Evaluated | None, Evaluated | None]:
    first, last = progress.baseline, progress.latest
    before = Evaluated(0, summarize(first, None, cfg), first.outputs) if first else None
    after = Evaluated(progress.latest_update or 0, summarize(last, first, cfg), last.outputs) if last else None
    return before, after


def evaluate_only(cfg: Config) -> None:
    """Evaluates the policy, or the checkpoint that a run would go on from, and prints the table. Updates nothing."""
    with open_run(cfg, training=False) as run:
        checkpoints = Checkpoints(run.output_dir, hosts=run.hosts)
        state, progress, _ = start(run, make_optimizer(cfg.rl), checkpoints)
        progress.latest = evaluate(
            run.engine, run.rollout_policy(state.params), run.tokenizer, run.eval_prompts, run.scorer, cfg
        )
        progress.latest_update = progress.update
        before, after = _before_and_after(progress, cfg)
        assert after is not None  # it was evaluated above
        if run.hosts.is_first:
            print_report(before, after)


def config_dict(cfg: Config) -> dict:
    """The config as plain data, without secrets."""
    return yaml.safe_load(dump_config(cfg))


def changed_keys(old: dict, new: dict, prefix: str = "") -> list[str]:
    """`section.key: old -> new` for every leaf that differs."""
    changes = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            changes += changed_keys(before, after, f"{prefix}{key}.")
        elif before != after:
            changes.append(f"{prefix}{key}: {before!r} -> {after!r}")
    return changes


def _is_due(update: int, every: int) -> bool:
    return every > 0 and update % every == 0
