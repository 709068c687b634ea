"""Which values make sense together: one function a rule, each yielding `Problem`s that name the fix."""

import re
import string
from collections.abc import Iterator
from typing import Literal
from urllib.parse import urlsplit

from jax_rl.config.problems import Problem
from jax_rl.config.schema import Config

PLACEHOLDERS = ("source_lang", "src_lang_code", "target_lang", "tgt_lang_code", "text")
SEVERITIES = ("MINOR", "MAJOR", "CRITICAL")
DEVICES = re.compile(r"auto|cpu|tpu|cuda(:[0-9]{1,4})?")
REWARD_DEVICES = re.compile(r"cpu|cuda(:[0-9]{1,4})?")
NUMBERED_GPU = re.compile(r"cuda:([0-9]{1,4})")
MODEL_DEVICE_KEYS = ("model.policy_gpu_ids", "model.reference_gpu_ids", "model.reference_device")
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def check_values(cfg: Config) -> list[Problem]:
    """Everything that is wrong with a config apart from missing files (`paths.find_missing`)."""
    inputs = (_sources, _template, _rewards, _judge)
    places = (_device_names, _device_ids, _meshes, _prefixes, _reward_devices, _lora, _reference)
    return [problem for rule in (*inputs, *places, _variables, _log_names, _profiles) for problem in rule(cfg)]


def explain_doubts(cfg: Config) -> list[str]:
    """One line for each thing that is allowed and probably not meant."""
    notices = []
    named = {name.upper() for name in cfg.reward.severity_weights}
    absent = [name for name in SEVERITIES if name not in named]
    if absent:
        notices.append(f"reward.severity_weights: no {', '.join(absent)}; such error spans weigh 0")
    others = [name for name in cfg.reward.severity_weights if name.upper() not in SEVERITIES]
    if others:
        notices.append(f"reward.severity_weights: {', '.join(others)} never occurs; there are MINOR, MAJOR, CRITICAL")
    if not cfg.data.split_field and (cfg.data.train_split or cfg.data.eval_split):
        notices.append(
            "data.train_split and data.eval_split are values of data.split_field, which is not set: not used"
        )
    if resolve_reference(cfg) == "lora_base" and (cfg.model.reference_gpu_ids or cfg.model.reference_device):
        notices.append("model.reference: the base weights under LoRA; its devices stay empty (separate would use them)")
    return notices


def _sources(cfg: Config) -> Iterator[Problem]:
    if not cfg.model.policy_name_or_path:
        yield Problem(("model.policy_name_or_path",), "is not set; give the folder or hub name of the model to train")
    data = cfg.data
    if not (data.train_file or data.eval_file or data.hf_dataset_name):
        every = ("data.train_file", "data.hf_dataset_name", "data.eval_file")
        yield Problem(every, "there is no data; set data.train_file or data.hf_dataset_name")
    if data.train_file and data.hf_dataset_name:
        keys = ("data.train_file", "data.hf_dataset_name")
        yield Problem(keys, "data.hf_dataset_name is set too; training rows come from one of them: drop the other")
    if data.split_field:
        yield from _split_values(cfg)


def _split_values(cfg: Config) -> Iterator[Problem]:
    """A side without a value takes all rows of its source: no harm where the other side has a source of its own."""
    data, keys = cfg.data, ("data.split_field", "data.train_split", "data.eval_split")
    other_source = data.eval_file or (not data.train_file and data.hf_eval_split not in (None, data.hf_train_split))
    held_out = data.eval_sampling_count is not None or data.eval_sampling_ratio is not None
    if not (data.train_split or data.eval_split):
        yield Problem(keys, "needs data.train_split or data.eval_split, its values for the two sides")
    elif not (other_source or held_out) and not (data.train_split and data.eval_split):
        missing, side = ("eval_split", "evaluation") if data.train_split else ("train_split", "training")
        text = f"needs data.{missing} too: without it {side} would take every row, those of the other side included"
        yield Problem((keys[0], f"data.{missing}"), text)


def _template(cfg: Config) -> Iterator[Problem]:
    key = ("prompt.template",)
    try:
        parts = list(string.Formatter().parse(cfg.prompt.template))
    except ValueError as error:
        yield Problem(key, f"{error}; write a brace that is meant as text twice: {{{{ or }}}}")
        return
    named = [name for _, name, _, _ in parts if name is not None]
    for name in dict.fromkeys(named):
        if name not in PLACEHOLDERS:
            known = ", ".join(f"{{{known}}}" for known in PLACEHOLDERS)
            yield Problem(
                key, f"{{{name}}} is not a placeholder; there are {known}, and a brace meant as text is written twice"
            )
    if any(spec or conversion for _, name, spec, conversion in parts if name in PLACEHOLDERS):
        yield Problem(key, "a placeholder takes no format; write {text}, not {text:...} or {text!...}")
    if "text" not in named:
        yield Problem(key, "has no {text}; put it where the source text belongs")


def _rewards(cfg: Config) -> Iterator[Problem]:
    reward = cfg.reward
    names = [name for name in ("metricx", "xcomet", "mqm", "chrf") if getattr(reward, name).enabled]
    keys = tuple(f"reward.{name}.enabled" for name in ("metricx", "xcomet", "mqm", "chrf"))
    if not names:
        yield Problem(keys, "no reward is enabled; set at least one of metricx, xcomet, mqm, chrf to true")
        return
    weights = {
        "metricx": reward.w_metricx,
        "xcomet": reward.w_xcomet_seq * reward.xcomet_seq_scale,
        "mqm": reward.w_mqm_seq * reward.mqm_seq_scale,
        "chrf": reward.w_chrf,
    }
    has_spans = {"xcomet", "mqm"} & set(names) and any(reward.severity_weights.values())
    if not has_spans and not any(weights[name] for name in names):
        where = (f"reward.{names[0]}.enabled", *keys, "reward.severity_weights")
        yield Problem(where, f"{', '.join(names)} weigh 0, so that nothing is rewarded; set its weight in reward")


def _judge(cfg: Config) -> Iterator[Problem]:
    mqm = cfg.reward.mqm
    if not mqm.enabled:
        return
    if not mqm.base_url:
        yield Problem(("reward.mqm.base_url",), "is not set, and reward.mqm is enabled; e.g. http://localhost:8000/v1")
    else:
        yield from _judge_url(mqm.base_url)
    if not mqm.model_name:
        yield Problem(("reward.mqm.model_name",), "is not set, and reward.mqm is enabled; give the served model's name")
    if mqm.score_min >= mqm.score_max:
        keys = ("reward.mqm.score_min", "reward.mqm.score_max")
        yield Problem(keys, f"{mqm.score_min:g} must be below reward.mqm.score_max, which is {mqm.score_max:g}")


def _judge_url(base_url: str) -> Iterator[Problem]:
    key = ("reward.mqm.base_url",)
    try:
        url = urlsplit(base_url)
    except ValueError as error:
        yield Problem(key, f"is not an address: {error}")
        return
    if url.username or url.password:
        yield Problem(key, "holds a user name or password; put a key in the variable that api_key_env names")
    elif url.scheme not in ("http", "https") or not url.netloc:
        yield Problem(key, f"{base_url!r} is not an address; it must start with http:// or https://")


def _device_names(cfg: Config) -> Iterator[Problem]:
    devices = [("misc.device", cfg.misc.device, DEVICES, "auto, cpu, cuda, cuda:N or tpu")]
    if cfg.model.reference_device is not None:
        devices.append(("model.reference_device", cfg.model.reference_device, DEVICES, "cpu, cuda, cuda:N or tpu"))
    for name in ("metricx", "xcomet"):
        device = getattr(cfg.reward, name).device
        devices.append((f"reward.{name}.device", device, REWARD_DEVICES, "cpu, cuda or cuda:N"))
    for key, device, pattern, right in devices:
        if not pattern.fullmatch(device):
            yield Problem((key,), f'"{device}" is not a device; it must be {right}')


def _device_ids(cfg: Config) -> Iterator[Problem]:
    model = cfg.model
    for name in ("policy_gpu_ids", "reference_gpu_ids"):
        ids = getattr(model, name)
        twice = sorted({i for i in ids if ids.count(i) > 1})
        if twice:
            yield Problem((f"model.{name}",), f"{list(ids)} names {_ids(twice)} twice; name each device once")
    if model.reference_gpu_ids and model.reference_device:
        keys = ("model.reference_device", "model.reference_gpu_ids")
        yield Problem(keys, f"{model.reference_device}, and model.reference_gpu_ids is set too; drop one of them")
        return
    key = "model.reference_gpu_ids" if model.reference_gpu_ids else "model.reference_device"
    policy, reference = set(model.policy_gpu_ids), set(_reference_ids(cfg))
    shared = sorted(policy & reference)
    if shared and policy != reference:
        text = f"{sorted(reference)} shares {_ids(shared)} with model.policy_gpu_ids {sorted(policy)}"
        yield Problem((key, "model.policy_gpu_ids"), f"{text}; the two must be disjoint or equal")


def _lora(cfg: Config) -> Iterator[Problem]:
    if cfg.model.lora.dropout:
        text = f"{cfg.model.lora.dropout:g} is not supported: what is trained must be what was sampled; it must be 0"
        yield Problem(("model.lora.dropout",), text)


def _reference(cfg: Config) -> Iterator[Problem]:
    model, key = cfg.model, "model.reference"
    own_devices = "model.reference_gpu_ids" if model.reference_gpu_ids else "model.reference_device"
    has_own = bool(model.reference_gpu_ids or model.reference_device)
    if model.reference == "separate" and not has_own:
        yield Problem((key,), "separate needs devices; set model.reference_gpu_ids")
    if model.reference in ("policy_mesh", "lora_base") and has_own:
        yield Problem((key, own_devices), f"{model.reference}, and {own_devices} is set too; drop one of them")
    if model.reference == "lora_base" and not model.lora.enabled:
        yield Problem((key, "model.lora.enabled"), "lora_base needs model.lora.enabled, which is false")
    if model.reference == "lora_base" and not _reference_is_base(cfg):
        keys = (key, "model.reference_name_or_path")
        yield Problem(keys, f"lora_base is the policy's own base; drop {keys[1]} {model.reference_name_or_path}")


def resolve_reference(cfg: Config) -> Literal["separate", "policy_mesh", "lora_base"]:
    """What `model.reference: auto` means: the base under LoRA, else its own devices if it has any."""
    model = cfg.model
    if model.reference != "auto":
        return model.reference
    if model.lora.enabled and _reference_is_base(cfg):
        return "lora_base"
    return "separate" if model.reference_gpu_ids or model.reference_device else "policy_mesh"


def _reference_is_base(cfg: Config) -> bool:
    return cfg.model.reference_name_or_path in (None, cfg.model.policy_name_or_path)


def _prefixes(cfg: Config) -> Iterator[Problem]:
    for name in ("metricx", "xcomet"):
        metric = getattr(cfg.reward, name)
        if metric.command_prefix and not metric.python_executable:
            key = (f"reward.{name}.python_executable",)
            yield Problem(key, f"is not set; behind reward.{name}.command_prefix it must name the Python over there")
        if metric.worker_folder and not metric.command_prefix:
            key = (f"reward.{name}.worker_folder",)
            yield Problem(key, f"is for a worker behind reward.{name}.command_prefix, which is not set")


def _meshes(cfg: Config) -> Iterator[Problem]:
    for name in ("mesh", "rollout_mesh"):
        mesh = getattr(cfg.model, name)
        open_sizes = [axis for axis in ("data", "fsdp", "tensor") if getattr(mesh, axis) == -1]
        if len(open_sizes) > 1:
            text = f"{' and '.join(open_sizes)} are -1, what is left; only one of them can be"
            yield Problem(tuple(f"model.{name}.{axis}" for axis in open_sizes), text)
        for axis in ("data", "fsdp") if name == "rollout_mesh" else ("data", "fsdp", "tensor"):
            if getattr(mesh, axis) == 0:
                yield Problem((f"model.{name}.{axis}",), "0 is out of range; it must be >= 1, or -1 for what is left")


def _reward_devices(cfg: Config) -> Iterator[Problem]:
    taken = _accelerators(cfg)
    for name in ("metricx", "xcomet"):
        metric = getattr(cfg.reward, name)
        if metric.command_prefix:  # a device of another machine
            continue
        index = _gpu_index(metric.device)
        if metric.enabled and index in taken:
            keys = (f"reward.{name}.device", *MODEL_DEVICE_KEYS)
            text = f"{metric.device} is one of the policy's and reference's devices {sorted(taken)}"
            yield Problem(keys, f"{text}; give the metric another, or take {index} out of model.*_gpu_ids")


def _variables(cfg: Config) -> Iterator[Problem]:
    variables = {"reward.mqm.api_key_env": cfg.reward.mqm.api_key_env}
    variables["misc.huggingface_token_env"] = cfg.misc.huggingface_token_env
    for key, name in variables.items():
        if not VARIABLE.fullmatch(name):
            # the value may be the key itself, put in the wrong place: not shown
            yield Problem((key,), "is not the name of an environment variable (letters, digits, _); not the key itself")


def _log_names(cfg: Config) -> Iterator[Problem]:
    keys = ("jsonl_name", "rollout_jsonl_name", "eval_output_jsonl_name")
    names = [getattr(cfg.logging, key) for key in keys]
    for i, (key, name) in enumerate(zip(keys, names, strict=True)):
        if not name or "/" in name or name in (".", ".."):
            yield Problem((f"logging.{key}",), f'"{name}" is not a file name; the file lies in logging.output_dir')
        elif name in names[:i]:
            other = keys[names.index(name)]
            yield Problem((f"logging.{key}", f"logging.{other}"), f"{name} is logging.{other} too; name another file")


def _profiles(cfg: Config) -> Iterator[Problem]:
    never = sorted(n for n in cfg.misc.profile_updates if n > cfg.rl.updates)
    if never:
        keys = ("misc.profile_updates", "rl.updates")
        text = f"{', '.join(map(str, never))} will not be made: rl.updates is {cfg.rl.updates}"
        yield Problem(keys, f"{text}; name updates from 1 to {cfg.rl.updates}")


def _reference_ids(cfg: Config) -> tuple[int, ...]:
    index = _gpu_index(cfg.model.reference_device or "")
    return cfg.model.reference_gpu_ids or (() if index is None else (index,))


def _gpu_index(device: str) -> int | None:
    match = NUMBERED_GPU.fullmatch(device)
    return int(match[1]) if match else None


def _accelerators(cfg: Config) -> set[int]:
    """The GPUs that policy and reference take; none where they run on CPUs or TPUs."""
    return set() if cfg.misc.device in ("cpu", "tpu") else {*cfg.model.policy_gpu_ids, *_reference_ids(cfg)}


def _ids(ids: list[int]) -> str:
    return ("device " if len(ids) == 1 else "devices ") + ", ".join(map(str, ids))
