"""The order of prompts: every epoch whole and new, and the same whoever asks, whenever."""

import subprocess
import sys

import numpy as np
import pytest

from jax_rl.data.order import prompt_indices


def sequence(num_prompts: int, seed: int, batch_size: int, updates: int) -> np.ndarray:
    return np.concatenate([prompt_indices(num_prompts, seed, update, batch_size) for update in range(updates)])


@pytest.mark.parametrize(("num_prompts", "batch_size"), [(12, 4), (12, 5), (7, 3), (3, 8), (1, 2), (101, 16)])
def test_every_epoch_is_a_permutation(num_prompts, batch_size):
    """Also where batches cross from one epoch into the next, or hold several."""
    epochs = 5
    drawn = sequence(num_prompts, 42, batch_size, -(-epochs * num_prompts // batch_size))
    for epoch in range(epochs):
        part = drawn[epoch * num_prompts : (epoch + 1) * num_prompts]
        assert sorted(part.tolist()) == list(range(num_prompts))


def test_epochs_and_seeds_differ():
    orders = [sequence(40, seed, 40, 6).reshape(6, 40) for seed in range(4)]
    distinct = {tuple(epoch.tolist()) for order in orders for epoch in order}
    assert len(distinct) == 24
    assert tuple(range(40)) not in distinct


def test_every_prompt_comes_early_and_late():
    """The mean place of a prompt over many epochs is the middle: sd of such a mean is 0.29 * 50 / sqrt(200) = 1.02."""
    epochs = sequence(50, 3, 50, 200).reshape(200, 50)
    places = np.argsort(epochs, axis=1).mean(axis=0)
    assert np.abs(places - 24.5).max() < 5 * 1.02
    assert np.abs(np.corrcoef(epochs[:-1].ravel(), epochs[1:].ravel())[0, 1]) < 0.05


def test_an_update_does_not_depend_on_those_before_it():
    forwards = [prompt_indices(30, 1, update, 7).tolist() for update in range(20)]
    backwards = [prompt_indices(30, 1, update, 7).tolist() for update in reversed(range(20))]
    assert forwards == backwards[::-1]
    assert sequence(30, 1, 7, 20).tolist() == sequence(30, 1, 14, 10).tolist() == sequence(30, 1, 1, 140).tolist()


def test_the_same_in_another_process():
    here = sequence(97, 42, 8, 30).tolist()
    code = (
        "from jax_rl.data.order import prompt_indices\n"
        "print([int(i) for u in range(30) for i in prompt_indices(97, 42, u, 8)])"
    )
    environment = {"PYTHONHASHSEED": "123", "PATH": ""}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert out.stdout.strip() == str(here)


def test_the_order_does_not_change_between_versions():
    """A resumed run continues the order it began: a change of these numbers breaks that."""
    assert prompt_indices(10, 42, 0, 12).tolist() == [0, 1, 4, 2, 6, 8, 5, 9, 7, 3, 7, 3]


@pytest.mark.parametrize("wrong", [(0, 1, 0, 2), (5, 1, 0, 0), (5, 1, -1, 2)])
def test_nonsense_is_refused(wrong):
    with pytest.raises(ValueError, match="must be positive"):
        prompt_indices(*wrong)
