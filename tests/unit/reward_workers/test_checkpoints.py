import os
import shutil

import pytest

from reward_workers.checkpoints import find_folder, fingerprint
from reward_workers.devices import check_device

MIB = 1 << 20


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "model"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "checkpoints" / "model.ckpt").write_bytes(os.urandom(3 * MIB))
    return folder


def test_a_copy_has_the_same_fingerprint(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copy)
    os.utime(copy / "config.json", (0, 0))
    (copy / ".git").mkdir()
    (copy / ".git" / "HEAD").write_text("x")
    assert fingerprint(str(copy)) == fingerprint(str(folder))


def retrain(folder):
    (folder / "checkpoints" / "model.ckpt").write_bytes(os.urandom(3 * MIB))


def change_the_end(folder):
    with open(folder / "checkpoints" / "model.ckpt", "r+b") as file:
        file.seek(-1, os.SEEK_END)
        (last,) = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))


def change_settings(folder):
    (folder / "config.json").write_text("{ }")


def rename(folder):
    (folder / "config.json").rename(folder / "hparams.json")


def lengthen(folder):
    with open(folder / "checkpoints" / "model.ckpt", "ab") as file:
        file.write(b"x")


@pytest.mark.parametrize("change", [retrain, change_the_end, change_settings, rename, lengthen])
def test_another_content_has_another_fingerprint(folder, change):
    before = fingerprint(str(folder))
    change(folder)
    assert fingerprint(str(folder)) != before


def test_a_folder_is_taken_as_it_is(folder):
    assert find_folder(str(folder)) == str(folder)


@pytest.mark.parametrize("name", ["/no/such/model", "./model", "~/model", "outputs/toy/model"])
def test_a_path_that_is_not_there_is_not_asked_of_the_hub(name):
    with pytest.raises(FileNotFoundError, match=f"there is no folder {name}"):
        find_folder(name)


def test_a_gpu_that_is_not_there():
    assert check_device("cpu") == "cpu"
    with pytest.raises(ValueError, match="sees no CUDA device"):
        check_device("cuda")
