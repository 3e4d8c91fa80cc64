"""No run is lost and none goes wrong without a word: divergence, second calls, damaged checkpoints, full disks."""

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file
from tiny_checkpoint import save_tiny_checkpoint
from tiny_data import write_table
from tiny_runs import arguments
from two_processes import run_two_processes

from triemo.training import evaluate_model, evaluate_pretraining, finetune, pretrain
from triemo.training.data.packing import pack_clips
from triemo.training.run_folder import checkpoint_faults, last_whole_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = {"finetune": finetune.main, "pretrain": pretrain.main}
# Saved after every step, logged after every third: a run that is stopped has logged less than it has learned.
CHANGES = {"max_steps": 4, "save_strategy": "steps", "save_steps": 1, "logging_steps": 3, "eval_strategy": "no"}
CHANGES |= {"lr_scheduler_type": "constant", "load_best_model_at_end": "false", "save_total_limit": 9}
STREAM = {"streaming": "true"}
KINDS = [("finetune", "table"), ("finetune", "stream"), ("pretrain", "table"), ("pretrain", "stream")]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("safety")
    save_tiny_checkpoint(folder / "tiny")
    write_table(folder / "data", train=8, validation=3, test=2)
    pack_clips(folder / "data", folder / "shards", samples_per_shard=4)
    return folder


def command_of(place, script, source, output, **changes):
    found = CHANGES | changes
    if source == "stream":
        found |= STREAM | ({"table": place / "shards", "shuffle_buffer": 3} if script == "pretrain" else {})
    return arguments(place, output, **found)


@pytest.fixture(scope="module")
def runs(place):
    """Finished runs, each made when it is first asked for."""
    found = {}

    def run(script, source):
        name = f"{script}_{source}"
        if name not in found:
            found[name] = SCRIPTS[script](command_of(place, script, source, name))
        return place / name, found[name]

    return run


def weights_of(folder):
    return {name: value.tolist() for name, value in load_file(folder / "model.safetensors").items()}


# Second calls ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("script", "source"), KINDS)
def test_a_finished_run_stays_as_it_is(place, runs, script, source):
    """Called again, as it stands and after it was stopped between the last step and its end."""
    folder, results = runs(script, source)
    command = command_of(place, script, source, folder.name)
    before = weights_of(folder)
    assert results["steps"] == 4
    assert SCRIPTS[script](command) == json.loads((folder / "results.json").read_text())

    record = json.loads((folder / "run.json").read_text())
    assert record.pop("finished") is True
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "results.json").unlink()
    again = SCRIPTS[script](command)
    assert again["steps"] == 4 and again["losses"] == results["losses"]
    assert again["train_loss"] == pytest.approx(results["train_loss"], abs=1e-6)
    assert weights_of(folder) == before and not (folder / "checkpoint-5").exists()


@pytest.mark.parametrize(("script", "source"), KINDS)
def test_a_run_stopped_between_two_logs_logs_the_losses_of_one_that_was_not(place, runs, script, source):
    folder, results = runs(script, source)
    stopped = place / f"{folder.name}_stopped"
    shutil.copytree(folder, stopped)
    for name in ("results.json", "model.safetensors", "run.json"):
        (stopped / name).unlink()
    for step in (3, 4):
        shutil.rmtree(stopped / f"checkpoint-{step}")
    again = SCRIPTS[script](command_of(place, script, source, stopped.name))
    assert again["losses"] == pytest.approx(results["losses"], abs=1e-6)
    assert again["train_loss"] == pytest.approx(results["train_loss"], abs=1e-6)
    if script == "pretrain":
        ours, theirs = (next(entry for entry in run["history"] if "loss" in entry) for run in (again, results))
        names = {name for name in theirs if name.endswith(("_loss", "_share")) or name == "logit_scale"}
        assert names and {n: ours[n] for n in names} == pytest.approx({n: theirs[n] for n in names}, abs=1e-6)
    assert weights_of(stopped) == weights_of(folder)


@pytest.mark.parametrize("script", list(SCRIPTS))
def test_what_goes_wrong_in_the_last_evaluation_does_not_cost_the_training(place, script, monkeypatch):
    """The model is saved before it is measured, and the same command measures it without another step."""

    def out_of_memory(*_, **__):
        raise MemoryError("measuring")

    command = command_of(place, script, "table", f"{script}_measured", max_steps=1)
    with monkeypatch.context() as patch:
        patch.setattr("triemo.training.finetune.score", out_of_memory)
        patch.setattr("triemo.training.trainer.EmotionTrainer.evaluate", out_of_memory)
        with pytest.raises(MemoryError):
            SCRIPTS[script](command)
    folder = place / f"{script}_measured"
    trained = load_file(folder / ".unfinished" / "model.safetensors")
    assert SCRIPTS[script](command)["steps"] == 1
    torch.testing.assert_close(load_file(folder / "model.safetensors"), trained, rtol=0, atol=0)


def test_two_runs_in_one_folder_at_once_are_refused(place):
    (place / "locked").mkdir()
    for main in SCRIPTS.values():
        with FileLock(place / "locked" / ".lock"), pytest.raises(ValueError, match="another run writes to .*locked"):
            main(arguments(place, "locked"))


# Checkpoints that are not whole ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "model.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_the_newest_whole_checkpoint_is_taken_and_damage_is_named(runs, tmp_path, caplog, name, damage):
    folder, _ = runs("finetune", "table")
    for step in (1, 2):
        shutil.copytree(folder / f"checkpoint-{step}", tmp_path / f"checkpoint-{step}")
    file = tmp_path / "checkpoint-2" / name
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with caplog.at_level(logging.WARNING):
        assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-1")
    problem = "is missing" if damage == "missing" else "cannot be read"
    assert f"checkpoint-2 is passed over: {name} {problem}" in caplog.text
    shutil.rmtree(tmp_path / "checkpoint-1")
    with pytest.raises(ValueError, match=rf"no checkpoint to go on from.*checkpoint-2: {name} {problem}.*--restart"):
        last_whole_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["optimizer.pt", "model.safetensors", "trainer_state.json"])
def test_a_byte_that_flipped_in_the_newest_checkpoint_is_found(runs, tmp_path, caplog, name):
    folder, _ = runs("finetune", "table")
    for step in (1, 2):
        shutil.copytree(folder / f"checkpoint-{step}", tmp_path / f"checkpoint-{step}")
    file = tmp_path / "checkpoint-2" / name
    content = bytearray(file.read_bytes())
    place = content.index(b"log_history") if name.endswith("json") else len(content) // 2
    content[place] ^= 1
    file.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-1")
    assert f"checkpoint-2 is passed over: {name} is not as it was written" in caplog.text
    for path in tmp_path.glob("checkpoint-*/sha256sums"):  # as a checkpoint of before has none
        path.unlink()
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")


def test_a_checkpoint_cut_off_while_it_was_written_is_passed_over(runs, tmp_path):
    folder, _ = runs("finetune", "table")
    assert checkpoint_faults(folder / "checkpoint-4", 1) == []
    assert checkpoint_faults(folder / "checkpoint-4", 2) == [
        "rng_state_0.pth is missing",
        "rng_state_1.pth is missing",
    ]
    for number in (3, 10, 12, 15):
        shutil.copytree(folder / "checkpoint-4", tmp_path / f"checkpoint-{number}")
    (tmp_path / "checkpoint-12" / "trainer_state.json").write_text('{"glob')
    (tmp_path / "checkpoint-15" / "trainer_state.json").unlink()
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    for number in (3, 10):
        shutil.rmtree(tmp_path / f"checkpoint-{number}")
    assert last_whole_checkpoint(tmp_path) is None  # a run that had not come as far as its first checkpoint


def test_a_named_checkpoint_without_its_random_state_is_refused(place, runs, tmp_path):
    folder, _ = runs("finetune", "table")
    shutil.copytree(folder / "checkpoint-2", tmp_path / "named")
    (tmp_path / "named" / "rng_state.pth").unlink()
    command = command_of(place, "finetune", "table", "from_named", resume_from_checkpoint=tmp_path / "named")
    with pytest.raises(ValueError, match="resume_from_checkpoint: cannot go on from .*: rng_state.pth is missing"):
        finetune.main(command)


@pytest.mark.parametrize("name", ["tokenizer.json", "processor_config.json", "config.json", "model.safetensors"])
def test_a_start_that_lacks_a_file_is_refused_by_name(place, tmp_path, name):
    shutil.copytree(place / "tiny", tmp_path / "start")
    (tmp_path / "start" / name).unlink()
    table = place / "data" / "table.csv"
    for main in SCRIPTS.values():
        with pytest.raises(ValueError, match=rf"start.*{name}|{name}.*start"):
            main(arguments(place, str(tmp_path / "out"), model=tmp_path / "start"))
    for module in (evaluate_model, evaluate_pretraining):
        with pytest.raises(ValueError, match=rf"start.*{name}|{name}.*start"):
            module.main(["--model", str(tmp_path / "start"), "--table", str(table), "--use_cpu"])


# Divergence --------------------------------------------------------------------------------------------------


@pytest.fixture
def good(place, request):
    """An output folder with a model that was good."""
    folder = place / request.node.name
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"good")
    return folder


@pytest.mark.parametrize("script", list(SCRIPTS))
def test_a_run_that_diverges_stops_and_saves_nothing_over_a_good_model(place, good, script):
    command = command_of(place, script, "table", good.name, learning_rate=1e10)
    with pytest.raises(ValueError, match=r"step [234]: the loss is (nan|inf).*--learning_rate \(now 1e\+10\)"):
        SCRIPTS[script](command)
    assert (good / "model.safetensors").read_bytes() == b"good" and not (good / "results.json").exists()
    for checkpoint in good.glob("checkpoint-*"):
        assert all(value.isfinite().all() for value in load_file(checkpoint / "model.safetensors").values())


def test_weights_that_are_not_finite_are_not_saved(place, good):
    """The step's own loss was fine, and there is no later one."""
    command = command_of(place, "finetune", "table", good.name, learning_rate=1e38, max_steps=1, weight_decay=1e10)
    with pytest.raises(ValueError, match="step 1: weights are not finite, first triemo"):
        finetune.main(command)
    assert (good / "model.safetensors").read_bytes() == b"good" and not (good / "checkpoint-1").exists()


def test_an_evaluation_that_is_not_finite_is_no_result(place, good):
    changes = {"learning_rate": 1e15, "max_steps": 1, "save_strategy": "no"}
    with pytest.raises(ValueError, match="step 1: the loss of the evaluation is (nan|inf)"):
        finetune.main(command_of(place, "finetune", "table", good.name, **changes))
    assert (good / "model.safetensors").read_bytes() == b"good" and not (good / "results.json").exists()


@pytest.mark.parametrize("script", list(SCRIPTS))
def test_two_processes_stop_together(place, good, script):
    command = command_of(place, script, "table", good.name, learning_rate=1e10, per_device_train_batch_size=2)
    with pytest.raises(AssertionError, match=rf"{script}.py: step [234]: the loss is"):
        run_two_processes(ROOT / "training" / f"{script}.py", *command, timeout=300)
    assert (good / "model.safetensors").read_bytes() == b"good"


# Disks -------------------------------------------------------------------------------------------------------

_SMALL_DISK = """
import resource, sys
from triemo.training.finetune import main
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))  # as on a full disk, no file of the model fits
try:
    main(sys.argv[1:])
except ValueError as error:
    sys.exit(f"refused: {error}")
"""


def test_a_full_disk_leaves_nothing_half(place, good):
    command = [sys.executable, "-c", _SMALL_DISK, *command_of(place, "finetune", "table", good.name)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert "refused: output_dir: cannot write" in run.stderr and "checkpoint-1" in run.stderr, run.stderr[-2000:]
    assert not list(good.glob("checkpoint-*")) and (good / "model.safetensors").read_bytes() == b"good"


def test_a_folder_that_cannot_be_made_is_named(place):
    for main in SCRIPTS.values():
        with pytest.raises(ValueError, match="output_dir: cannot write to /proc/nothing/here"):
            main(arguments(place, "/proc/nothing/here"))
