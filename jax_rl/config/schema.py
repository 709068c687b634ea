"""Every configuration key with its type, default and meaning: nine sections of frozen dataclasses.

This file only declares. The types (`kinds.py`) carry the range of a number and say which texts are paths or secrets;
`load.py` reads YAML into it, `checks.py` says which values make sense together.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from jax_rl.config.kinds import (
    AxisSize,
    HubName,
    InputFile,
    InputFolder,
    NonNegative,
    NonNegativeInt,
    OpenShare,
    OutputFolder,
    Positive,
    PositiveInt,
    PositiveShare,
    Program,
    Secret,
    Seed,
    Share,
)


@dataclass(frozen=True)
class LoRAConfig:
    enabled: bool = False  # train low-rank adapters beside frozen weights
    rank: PositiveInt = 16
    alpha: Positive = 32.0  # the adapters' output is multiplied by alpha / rank
    dropout: NonNegative = 0.0  # only 0: sampling and training must compute the same
    target_modules: tuple[str, ...] = ("all-linear",)  # names as q_proj; all-linear = all but embedding and head


@dataclass(frozen=True)
class MeshConfig:
    data: AxisSize = 1  # copies of the weights; -1 = what the other axes leave of the devices
    fsdp: AxisSize = -1  # parts that each weight is cut into and gathered from; rows lie along data and fsdp
    tensor: AxisSize = 1  # parts of heads and MLP columns; must divide the heads


@dataclass(frozen=True)
class RolloutMeshConfig:
    data: AxisSize = -1
    fsdp: AxisSize = 1
    tensor: NonNegativeInt = 0  # 0 = as far as the key/value heads divide inside a host


@dataclass(frozen=True)
class ModelConfig:
    policy_name_or_path: HubName | None = None  # Hugging Face folder or hub name of the supervised starting point
    reference_name_or_path: HubName | None = None  # frozen KL reference; null = the policy's starting point
    tokenizer_name_or_path: HubName | None = None  # null = the policy's folder
    trust_remote_code: bool = False  # accepted for old files; no remote code is ever run
    policy_gpu_ids: tuple[
        NonNegativeInt, ...
    ] = ()  # local device ids of the policy; empty = one free GPU, all CPUs or TPUs
    reference_gpu_ids: tuple[NonNegativeInt, ...] = ()  # local device ids of the reference; empty = the policy's
    mesh: MeshConfig = field(default_factory=MeshConfig)  # of the policy's devices
    rollout_mesh: RolloutMeshConfig = field(default_factory=RolloutMeshConfig)  # the same devices, for generation
    reference_device: str | None = None  # old spelling of one reference device, e.g. cuda:6 or cpu
    # where the reference is: on devices of its own, on the policy's, or the base weights under LoRA
    reference: Literal["auto", "separate", "policy_mesh", "lora_base"] = "auto"
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    attn_implementation: str = "auto"  # accepted for old files; attention is XLA's
    use_fast_tokenizer: bool = True  # accepted for old files; the tokenizer is always the fast one


@dataclass(frozen=True)
class DataConfig:
    train_file: InputFile = None  # .jsonl, .json or .parquet
    eval_file: InputFile = None  # same formats; null = split off train, or the data set's own split
    hf_dataset_name: HubName | None = None  # hub name or local folder of a Hugging Face data set
    hf_dataset_config_name: str | None = None  # its configuration, e.g. en-ko_KR
    hf_train_split: str = "train"  # name of its training split
    hf_eval_split: str | None = None  # name of its evaluation split
    hf_revision: str | None = None  # git revision on the hub
    hf_streaming: bool = False  # read rows without downloading the whole set first
    split_field: str | None = None  # column that names each row's split
    train_split: str | None = None  # value of split_field for training rows
    eval_split: str | None = None  # value of split_field for evaluation rows
    limit: PositiveInt | None = None  # first rows of the training side to keep
    eval_limit: PositiveInt | None = None  # first rows of the evaluation side to keep
    eval_sampling_count: PositiveInt | None = None  # rows split off for evaluation by the hash of their ids
    eval_sampling_ratio: OpenShare | None = None  # the same as a share of all rows; the count wins
    eval_sampling_seed: int = 42  # seed inside that hash
    eval_sampling_min_samples: PositiveInt = 1  # fewest rows that the ratio may give
    id_field: str = "id"
    src_text_field: str = "src_text"
    src_lang_field: str = "src_lang"
    tgt_lang_field: str = "tgt_lang"
    src_lang_code_field: str = "src_lang_code"
    tgt_lang_code_field: str = "tgt_lang_code"
    ref_text_field: str = "ref_text"
    is_bad_source_field: str = "is_bad_source"
    skip_bad_source: bool = False  # leave out rows whose is_bad_source is true
    default_src_lang: str = "English"
    default_tgt_lang: str = "Korean"
    default_src_lang_code: str = "en"
    default_tgt_lang_code: str = "ko"
    max_prompt_tokens: PositiveInt = 1024  # longest prompt, in tokens, chat template included
    overlong_prompt_policy: Literal["error", "skip"] = "error"  # skip leaves the row out and counts it


@dataclass(frozen=True)
class PromptConfig:
    template: str = (  # instruction with the five placeholders; \n means a newline
        "Translate the following text from {source_lang} ({src_lang_code}) to {target_lang} ({tgt_lang_code}). "
        "Answer with the translation only.\n\n{text}"
    )


@dataclass(frozen=True)
class GenerationConfig:
    max_new_tokens: PositiveInt = 256  # longest completion, the end-of-turn token included
    temperature: NonNegative = 0.8  # 0 = greedy
    top_p: PositiveShare = 0.95  # nucleus; 1 = off
    top_k: NonNegativeInt = 50  # 0 = off
    num_samples_per_prompt: PositiveInt = 2  # G, the group size
    do_sample: bool = True  # false = greedy
    repetition_penalty: Positive = 1.0  # 1 = off
    chat_template_kwargs: dict[str, Any] = field(default_factory=lambda: {"enable_thinking": False})
    kv_cache_dtype: Literal["auto", "bfloat16"] = "auto"  # of keys and values while decoding; auto = misc.dtype
    prompts_per_batch: NonNegativeInt = 0  # prompts that one generation batch holds; 0 = all of the update's


@dataclass(frozen=True)
class MetricXConfig:
    enabled: bool = True
    model_name: HubName = "google/metricx-24-hybrid-large-v2p6"  # hub name or folder
    tokenizer_name: HubName = "google/mt5-xl"  # hub name or folder with spiece.model
    use_reference: bool = False  # add the reference translation to the input
    batch_size: PositiveInt = 4  # sequences in one forward pass
    device: str = "cuda"  # cuda (= the next free GPU), cuda:N or cpu
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    max_input_length: PositiveInt = 2048  # tokens
    overflow_policy: Literal["truncate", "skip"] = "truncate"  # too long: shorten the source, or score Missing
    offset: float = 5.0  # reward = offset - score
    python_executable: Program = None  # the worker's own Python; null = this one
    command_prefix: tuple[str, ...] = ()  # runs the worker elsewhere, e.g. [ssh, aux-node]; srun, kubectl exec -i too
    worker_folder: str | None = None  # behind a prefix: where reward_workers lies there; null = the same path as here
    subprocess_timeout_sec: Positive = 600.0  # longest time for one scoring request
    startup_timeout_sec: Positive = 600.0  # longest time to load the model


@dataclass(frozen=True)
class XCometConfig:
    enabled: bool = True
    model_name: HubName = "Unbabel/XCOMET-XL"  # hub name, or folder with hparams.yaml and checkpoints/model.ckpt
    encoder_name: HubName | None = None  # of the encoder's config and tokenizer; null = the checkpoint's own
    batch_size: PositiveInt = 2
    device: str = "cuda"
    use_reference: bool = False
    overflow_policy: Literal["truncate", "skip"] = "truncate"  # too long: shorten the source, or score Missing
    python_executable: Program = None
    command_prefix: tuple[str, ...] = ()
    worker_folder: str | None = None
    subprocess_timeout_sec: Positive = 600.0
    startup_timeout_sec: Positive = 600.0


@dataclass(frozen=True)
class MQMConfig:
    enabled: bool = False
    base_url: str | None = None  # of an OpenAI-compatible server, e.g. http://host:8000/v1
    model_name: str | None = None
    api_key: Secret = field(default=None, repr=False)  # never written anywhere; api_key_env is the better place
    api_key_env: str = "OPENAI_API_KEY"  # environment variable that holds the key
    source_lang: str | None = None  # null = each example's own language
    target_lang: str | None = None
    timeout_sec: Positive = 120.0  # for one request
    max_retries: NonNegativeInt = 3  # on 408, 429, 5xx and transport errors
    batch_size: PositiveInt = 1  # requests under way at once
    use_reference: bool = False
    temperature: NonNegative = 0.0
    top_p: PositiveShare = 1.0
    max_tokens: PositiveInt = 1024
    stop: tuple[str, ...] = ()
    chat_template_kwargs: dict[str, Any] = field(default_factory=lambda: {"enable_thinking": False})
    score_min: float = -25.0
    score_max: float = 0.0
    scale_to_unit_interval: bool = False  # map [score_min, score_max] to [0, 1]
    error_policy: Literal["raise", "skip"] = "raise"  # after the retries: stop the run, or score Missing
    prompt_file: InputFile = None  # JSON list of chat messages that replaces the gemba package's


@dataclass(frozen=True)
class ChrFConfig:
    enabled: bool = False  # sentence chrF against the reference, 0..1, in process


@dataclass(frozen=True)
class RewardConfig:
    w_metricx: float = 1.0
    w_xcomet_seq: float = 0.0
    xcomet_seq_scale: float = 1.0
    w_mqm_seq: float = 0.0
    mqm_seq_scale: float = 1.0
    w_chrf: float = 0.0
    severity_weights: dict[str, float] = field(
        default_factory=lambda: {"MINOR": -1.0, "MAJOR": -5.0, "CRITICAL": -10.0}
    )  # token reward of an error span
    overlap_policy: Literal["any_overlap", "majority_overlap"] = "any_overlap"
    majority_threshold: PositiveShare = 0.5  # share of a token's characters that a span must cover
    use_confidence: bool = False  # multiply a span's weight by its confidence
    span_combine_policy: Literal["sum", "min", "max"] = "sum"  # several spans on one token
    cache_enabled: bool = True  # keep every score on disk with the run
    min_scored_fraction: Share = 0.5  # an update that scores less of its completions stops the run
    max_restarts: NonNegativeInt = 3  # of one worker, per request; then the scores are Missing
    metricx: MetricXConfig = field(default_factory=MetricXConfig)
    xcomet: XCometConfig = field(default_factory=XCometConfig)
    mqm: MQMConfig = field(default_factory=MQMConfig)
    chrf: ChrFConfig = field(default_factory=ChrFConfig)


@dataclass(frozen=True)
class RLConfig:
    algorithm: Literal["grpo", "reinforce"] = "grpo"
    lr: Positive = 1e-6  # AdamW, constant
    weight_decay: NonNegative = 0.0
    batch_size: PositiveInt = 2  # prompts per update
    grad_accum: NonNegativeInt = 1  # completions per optimizer step; 0 = all of the update's
    micro_batch_size: NonNegativeInt = 0  # completions in one forward and backward pass; 0 = grad_accum's
    micro_batch_tokens: NonNegativeInt = 0  # instead, its tokens with padding: completions packed behind their prompt
    remat: Literal["full", "minimal"] = "full"  # minimal: keep what the weights' products give; less work, more memory
    clip_eps: Positive = 0.2
    kl_coef: NonNegative = 0.01  # 0 = no reference model is loaded
    kl_estimator: Literal["k3", "k2", "k1"] = "k3"
    entropy_coef: NonNegative = 0.0
    max_grad_norm: Positive = 1.0
    ppo_epochs: PositiveInt = 1  # passes over each update's completions
    updates: PositiveInt = 20
    loss_aggregation: Literal["sequence_mean", "token_mean", "constant"] = "sequence_mean"
    normalize_advantage: bool = True  # over all valid tokens of the update
    group_normalize: bool = True  # add the group's z-score
    group_advantage_coef: float = 1.0
    eps: Positive = 1e-8
    max_skipped_steps: PositiveInt = 3  # non-finite steps in a row that stop the run


@dataclass(frozen=True)
class EvalConfig:
    eval_every_n_updates: NonNegativeInt = 5  # 0 = only before and after
    eval_limit: PositiveInt | None = 64  # first examples of the evaluation side
    run_before_train: bool = True
    num_samples_per_prompt: PositiveInt = 1  # above 1: that many samples, reported beside the greedy figures
    temperature: NonNegative = 1.0  # of those samples
    baseline_temperature: NonNegative | None = (
        None  # also sample the starting policy at this one: what sharpening gives
    )
    bootstrap_resamples: PositiveInt = 2000  # for the 95 % intervals


@dataclass(frozen=True)
class LoggingConfig:
    output_dir: OutputFolder = "outputs/run"
    jsonl_name: str = "train_log.jsonl"
    rollout_jsonl_name: str = "train_rollouts.jsonl"
    save_rollouts: bool = False
    eval_output_jsonl_name: str = "eval_outputs.jsonl"
    save_eval_outputs: bool = False
    save_every_n_updates: NonNegativeInt = 10  # 0 = only at the end
    save_only_best: bool = False  # keep best/ and resume_latest/ only
    auto_resume: bool = True  # go on from the newest whole checkpoint of output_dir
    resume_from_checkpoint: InputFolder = None  # go on from this folder
    keep_last_n_checkpoints: NonNegativeInt = 0  # 0 = all
    tensorboard: bool = True


@dataclass(frozen=True)
class MiscConfig:
    seed: Seed = 42
    device: str = "auto"  # auto, cpu, cuda, cuda:N or tpu
    cpu_devices: NonNegativeInt = 0  # simulated CPU devices, to try a mesh without accelerators; 0 = one
    dtype: Literal["float32", "bfloat16"] = "bfloat16"  # of the policy's and reference's weights
    huggingface_cache_dir: OutputFolder | None = None
    huggingface_token: Secret = field(default=None, repr=False)  # never written; the variable below is the better place
    huggingface_token_env: str = "HF_TOKEN"
    host_timeout_sec: Positive = 1800.0  # longest wait for another host, at the start and in every exchange
    heartbeat_timeout_sec: Positive = 60.0  # a process of another host that is silent for this long is dead
    profile_updates: tuple[PositiveInt, ...] = ()  # write a JAX profiler trace of these updates to output_dir/profile
    compilation_cache_dir: OutputFolder | None = None  # of compiled programs; null = ~/.cache/jax_rl


@dataclass(frozen=True)
class Config:
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    rl: RLConfig = field(default_factory=RLConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    misc: MiscConfig = field(default_factory=MiscConfig)
