"""A model is a local folder or a hub name; anything else is one clear message. Without network, as all tests."""

import pytest

from jax_rl.models.errors import ModelError
from jax_rl.models.hub import resolve_model_folder


def test_a_folder_is_itself(tmp_path, monkeypatch):
    assert resolve_model_folder(str(tmp_path)) == tmp_path
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve_model_folder("a/b").resolve() == tmp_path / "a" / "b"


@pytest.mark.parametrize("name", ["/nowhere/model", "./model", "a/b/c", "model"])
def test_what_cannot_be_a_hub_name_is_a_missing_folder(name):
    with pytest.raises(ModelError, match=f"there is no folder {name}, and a model on the .* hub is named owner/model"):
        resolve_model_folder(name)


def test_a_file_is_not_a_model(tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ModelError, match="is a file"):
        resolve_model_folder(str(tmp_path / "model.safetensors"))


@pytest.mark.parametrize("name", ["owner/model", "owner/mo del"])
def test_a_hub_model_that_cannot_be_had_says_why(name, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=f"there is no folder {name}, and the Hugging Face hub does not give"):
        resolve_model_folder(name, cache_dir=tmp_path, token="secret-token")


def test_a_downloaded_model_is_found_without_network(tmp_path, monkeypatch):
    """The layout of the hub's own cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "models--owner--model" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (tmp_path / "models--owner--model" / "refs").mkdir()
    (tmp_path / "models--owner--model" / "refs" / "main").write_text(commit)
    assert resolve_model_folder("owner/model", cache_dir=tmp_path) == snapshot
