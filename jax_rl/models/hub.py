"""From what the user calls a model to a local folder."""

from pathlib import Path

from jax_rl.models.errors import ModelError

# weights in safetensors, configs, tokenizers and chat templates; no pickles, no other frameworks' files
_WANTED = ["*.safetensors", "*.json", "*.model", "*.jinja", "*.txt"]


def resolve_model_folder(name: str, cache_dir: str | Path | None = None, token: str | None = None) -> Path:
    """A local folder as it is; else a model of the Hugging Face hub, downloaded into its cache or found there.

    Args:
        name: a path, or `owner/model`.
        cache_dir: where downloads go; None = the hub's own default.
        token: for private and gated models; None = the one that `hf auth login` stored.

    Raises:
        ModelError: neither a folder nor a model that can be had.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ModelError(f"{name} is a file; a model is a folder with config.json and safetensors")
    if folder.is_absolute() or name.startswith((".", "~")) or len(folder.parts) != 2:
        raise ModelError(f"there is no folder {name}, and a model on the Hugging Face hub is named owner/model")
    return _download(name, cache_dir, token)


def _download(name: str, cache_dir: str | Path | None, token: str | None) -> Path:
    import huggingface_hub  # half a second that local folders do not pay
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(huggingface_hub.snapshot_download(name, cache_dir=cache_dir, token=token, allow_patterns=_WANTED))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(
            f"there is no folder {name}, and the Hugging Face hub does not give a model of that name: {reason} "
            "(a gated or private one needs misc.huggingface_token_env)"
        ) from error
