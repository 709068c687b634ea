"""The toy job on simulated devices: whatever the mesh, the same tokens are drawn and the same losses come out."""

import json

import pytest

JOB = [
    "rl.updates=4",
    "rl.batch_size=4",
    "generation.num_samples_per_prompt=4",
    "rl.micro_batch_size=8",
    "generation.max_new_tokens=8",
    "generation.prompts_per_batch=2",
    "eval.eval_every_n_updates=0",
    "eval.run_before_train=false",
    "logging.save_every_n_updates=2",
    "logging.save_rollouts=true",
]
MESHES = {
    "packed and padded, the reference beside it": [
        [
            "misc.cpu_devices=4",
            "model.policy_gpu_ids=[0,1,2]",
            "model.reference_gpu_ids=[3]",
            "rl.micro_batch_tokens=256",
        ],
    ],
    "mixed, then restored on padded": [
        ["misc.cpu_devices=8", "model.mesh.data=2", "model.mesh.fsdp=2", "model.mesh.tensor=2", "rl.updates=2"],
        ["misc.cpu_devices=3", "model.mesh.fsdp=3"],
    ],
}


def losses(run):
    return [row["loss"] for row in run.log() if row["type"] == "train"]


def tokens(run):
    lines = (run.log_path.parent / "train_rollouts.jsonl").read_text().splitlines()
    return [json.loads(line)["completion_text"] for line in lines]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("meshes")


@pytest.fixture(scope="module")
def one_device(folder, finished_training):
    return finished_training(folder / "one", *JOB, workers=False)


@pytest.mark.parametrize("name", MESHES)
def test_the_mesh_changes_nothing(name, folder, start_training, one_device):
    for overrides in MESHES[name]:
        run = start_training(folder / name.replace(" ", "_"), *JOB, *overrides, workers=False)
        assert run.finish() == 0, run.stderr[-3000:]
    assert tokens(run) == tokens(one_device)
    assert losses(run) == pytest.approx(losses(one_device), abs=1e-4)
    assert "Involuntary full rematerialization" not in run.stderr


def test_tensor_must_divide_the_heads(folder, start_training):
    run = start_training(folder / "heads", "misc.cpu_devices=4", "model.mesh.tensor=4", workers=False)
    assert run.finish() == 2
    assert "model.mesh: tensor 4 does not divide 2 kv_heads" in run.stderr
    assert "for this model tensor can be 1, 2" in run.stderr
