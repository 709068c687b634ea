"""The MetricX model class under the trainer's transformers (5.x): same scores as under the worker's (4.57)."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from reward_workers.metricx.model import load_model

pytestmark = pytest.mark.filterwarnings("ignore")  # of other people's code


@pytest.fixture
def folder(tiny_metricx, tmp_path):
    return Path(shutil.copytree(tiny_metricx.folder, tmp_path / "model"))


def as_bin(folder: Path) -> dict:
    """Rewrites the weights as Google publishes them: pytorch_model.bin."""
    from safetensors.torch import load_file

    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    return weights


def edit_json(path: Path, **changes) -> None:
    settings = {key: value for key, value in (json.loads(path.read_text()) | changes).items() if value is not None}
    path.write_text(json.dumps(settings))


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_scores_do_not_depend_on_the_version_of_transformers(tiny_metricx, folder, form):
    if form == "bin":
        as_bin(folder)
    model = load_model(str(folder), torch.float32, "cpu")
    assert model.score_ids(tiny_metricx.expected["ids"]) == pytest.approx(tiny_metricx.expected["qe"], abs=1e-3)


def test_what_tie_word_embeddings_says_changes_nothing(tiny_metricx, folder):
    """transformers 5 sets it for every mT5; code that obeys it scales the scores, or ties the head."""
    edit_json(folder / "config.json", tie_word_embeddings=True)
    model = load_model(str(folder), torch.float32, "cpu")
    assert model.score_ids(tiny_metricx.expected["ids"]) == pytest.approx(tiny_metricx.expected["qe"], abs=1e-3)


def test_the_final_sum_is_in_float32(tiny_metricx, folder):
    """Scores of a bfloat16 model are not rounded to bfloat16, whose steps of 1/8 would tie the members of a group."""
    scores = torch.tensor(load_model(str(folder), torch.bfloat16, "cpu").score_ids(tiny_metricx.expected["ids"]))
    inside = scores[(scores > 0) & (scores < 25)]
    assert len(inside) > 4 and not torch.equal(inside, inside.bfloat16().float())


def test_saved_and_loaded_again(tiny_metricx, folder, tmp_path):
    load_model(str(folder), torch.float32, "cpu").save_pretrained(tmp_path / "again")
    again = load_model(str(tmp_path / "again"), torch.float32, "cpu")
    assert again.score_ids(tiny_metricx.expected["ids"]) == pytest.approx(tiny_metricx.expected["qe"], abs=1e-3)


def test_missing_weights_are_an_error_and_not_random(folder):
    weights = as_bin(folder)
    del weights["lm_head.weight"]
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"is not a MetricX checkpoint: missing \['lm_head.weight'\]"):
        load_model(str(folder), torch.float32, "cpu")


def test_a_small_vocabulary_must_name_its_score_token(folder):
    edit_json(folder / "config.json", metricx_token_id=None)
    with pytest.raises(ValueError, match="the score token 250089 is outside the vocabulary of 512"):
        load_model(str(folder), torch.float32, "cpu")


def test_nothing_is_unpickled(folder):
    """A .bin that would run code when unpickled is refused."""
    as_bin(folder)

    class Evil:
        def __reduce__(self):
            return (folder.joinpath("ran").touch, ())

    torch.save({"lm_head.weight": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(Exception, match="[Ww]eights.only|weights_only"):
        load_model(str(folder), torch.float32, "cpu")
    assert not (folder / "ran").exists()
