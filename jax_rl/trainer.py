"""The loop: prompts -> rollout -> score -> advantages -> update -> log -> save."""

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from jax_rl.checkpoints import Checkpoints, read_meta
from jax_rl.config import Config, dump_config
from jax_rl.evaluate import evaluate, summarize
from jax_rl.experience import Experience, RunStopped, collect_experience
from jax_rl.files import move_aside
from jax_rl.learning.optimizer import Optimizer, TrainState, make_optimizer
from jax_rl.learning.programs import UpdatePrograms, make_programs
from jax_rl.learning.update import run_update
from jax_rl.models.hf_export import save_model
from jax_rl.parallel.arrays import to_host
from jax_rl.progress import Progress, is_due
from jax_rl.runlog.profiles import profile_update
from jax_rl.runlog.run_log import NoLog, RunLog, append_evaluation
from jax_rl.runlog.tables import Evaluated, print_report
from jax_rl.runlog.timing import PhaseClock
from jax_rl.setup import Run, open_run
from jax_rl.start import abstract_state, shardings_of, start, weights_to_evaluate
from jax_rl.stopping import stop_on_sigterm

log = logging.getLogger(__name__)


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
        checkpoints.mend()
        state, progress, resumed = start(run, optimizer, checkpoints)
        run.scorer.wait_until_ready()
        _set_aside(run, checkpoints, progress, resumed)

        def stopping() -> bool:
            return run.hosts.any("wish to stop", stop.requested)

        def evaluate_if_owed() -> None:
            if not stopping() and progress.owes_evaluation(cfg):
                with _saving_on_failure(run, state, progress, checkpoints):
                    _evaluate(run, state, progress, run_log)

        with _open_log(run, progress, resumed) as run_log:
            evaluated = progress.latest_update
            evaluate_if_owed()
            stop_now = stopping()
            if progress.latest_update != evaluated and (progress.update or stop_now):
                checkpoints.save(state, progress.to_meta(cfg))
            while not stop_now and progress.update < cfg.rl.updates:
                with _profiled(run, progress.update + 1):
                    state = _one_update(run, state, progress, programs, checkpoints, run_log)
                evaluate_if_owed()
                stop_now, last = stopping(), progress.update == cfg.rl.updates
                if last or stop_now or is_due(progress.update, cfg.logging.save_every_n_updates):
                    checkpoints.save(state, progress.to_meta(cfg))
            if stop_now and (progress.update < cfg.rl.updates or progress.owes_evaluation(cfg)):
                log.warning("SIGTERM: stopped after update %d; the same command goes on from there", progress.update)
                return
            if not (best_only and progress.best_update):
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


def _one_update(
    run: Run,
    state: TrainState,
    progress: Progress,
    programs: UpdatePrograms,
    checkpoints: Checkpoints,
    run_log: RunLog | NoLog,
) -> TrainState:
    cfg, update, clock = run.cfg, progress.update + 1, PhaseClock()
    with _saving_on_failure(run, state, progress, checkpoints):
        experience = collect_experience(run, state.params, update, clock)
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


@contextmanager
def _saving_on_failure(run: Run, state: TrainState, progress: Progress, checkpoints: Checkpoints) -> Iterator[None]:
    """Around what changes no state: when it fails, what has been trained or evaluated is saved.

    Several hosts save together or not at all, so that there a failure of one alone goes back to the last save.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        together = isinstance(error, RunStopped)
        something = progress.update or progress.baseline
        if together or (run.hosts.count == 1 and something):
            checkpoints.save(state, progress.to_meta(run.cfg))
        raise


def _profiled(run: Run, update: int) -> AbstractContextManager[None]:
    host = run.hosts.index if run.hosts.count > 1 else None
    return profile_update(run.output_dir, update, run.cfg.misc.profile_updates, host)


def _train_row(experience: Experience, stats: dict[str, float | None], clock: PhaseClock, cfg: Config) -> dict:
    tokens = float(experience.batch.mask.sum())
    figures = experience.figures(cfg.reward.metricx.offset)
    seconds = {phase: clock.of(phase) for phase in ("rollout", "reference", "update")}
    seconds["scoring"] = figures["seconds_scoring"] or 0.0
    if experience.ref_logp is None:
        seconds["reference"] = 0.0
    return {
        **figures,
        **stats,
        "learning_rate": cfg.rl.lr,
        **clock.seconds(),
        **{f"{phase}_tokens_per_second": tokens / s if s else None for phase, s in seconds.items()},
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
    score = row["model_select_score"]
    best = not first and score is not None and (progress.best_score is None or score > progress.best_score)
    if best:
        _save_model(run, "best", state)
    run_log.evaluation(progress.update, row | {"seconds_eval": clock.of("eval")})
    if cfg.logging.save_eval_outputs:
        run_log.eval_outputs(report.output_rows(progress.update))
    # only now, so that an evaluation that fails before is made again, and logged once
    progress.latest, progress.latest_update = report, progress.update
    if first:
        progress.baseline = report
    if best:
        progress.best_score, progress.best_update = score, progress.update


def _save_model(run: Run, name: str, state: TrainState) -> None:
    policy, first = run.policy(state.params), run.hosts.is_first
    out, tokenizer = run.output_dir / name, run.tokenizer.folder
    save_model(out, run.model, policy, run.policy_folder, tokenizer=tokenizer, to_host=to_host, write=first)


def _set_aside(run: Run, checkpoints: Checkpoints, progress: Progress, resumed: bool) -> None:
    """Renames what an earlier run, or a branch of this one that is given up, left past the start.

    Without the best model's folder (it went with its branch, or stayed in another output folder) the next best counts.
    """
    best = run.output_dir / "best"
    if run.hosts.is_first:
        kept = checkpoints.set_aside_after(progress.update if resumed else -1)
        models = [] if resumed else [best, run.output_dir / "final"]
        if resumed and any((read_meta(path).get("best_update") or 0) > progress.update for path in kept):
            models = [best]
        for path in (*kept, *map(move_aside, models)):
            if path is not None:
                log.warning("left by an earlier run, past the start of this one: kept as %s", path)
    if not run.hosts.any("the best model", run.hosts.is_first and best.is_dir()):
        progress.best_score = progress.best_update = None


def _open_log(run: Run, progress: Progress, resumed: bool) -> RunLog | NoLog:
    if not run.hosts.is_first:
        return NoLog()
    (run.output_dir / "resolved_config.yaml").write_text(dump_config(run.cfg), encoding="utf-8")
    if not resumed:
        return RunLog(run.output_dir, run.cfg, None)
    return RunLog(run.output_dir, run.cfg, progress.update, evaluates_again=progress.latest_update != progress.update)


def _before_and_after(progress: Progress, cfg: Config) -> tuple[Evaluated | None, Evaluated | None]:
    first, last = progress.baseline, progress.latest
    before = Evaluated(0, summarize(first, None, cfg), first.outputs) if first else None
    after = Evaluated(progress.latest_update or 0, summarize(last, first, cfg), last.outputs) if last else None
    return before, after


def evaluate_only(cfg: Config) -> None:
    """Evaluates the policy, or the checkpoint that a run would go on from: a table, and a row in the log.

    Updates nothing, and may run beside the run itself.
    """
    with open_run(cfg, training=False) as run:
        trained, progress = weights_to_evaluate(run)
        run.scorer.wait_until_ready()
        report = evaluate(run.engine, run.rollout_policy(trained), run.tokenizer, run.eval_prompts, run.scorer, cfg)
        progress.latest, progress.latest_update = report, progress.update
        before, after = _before_and_after(progress, cfg)
        assert after is not None  # it was evaluated above
        if run.hosts.is_first:
            print_report(before, after)
            outputs = report.output_rows(progress.update) if cfg.logging.save_eval_outputs else []
            append_evaluation(run.output_dir, cfg, progress.update, after.row, outputs)
