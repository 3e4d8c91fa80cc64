"""The READMEs: every command runs here or is listed with the reason why not, and every name in them exists."""

import io
import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from contextlib import redirect_stdout
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from endpoint_service import serve
from papers import PAPERS, ROOT, code_spans, commands, fenced, read_paper, run_python_block, sections
from PIL import Image
from test_dialogue_pipeline import tiny_head
from tiny_checkpoint import save_tiny_checkpoint
from tiny_data import write_voice
from tiny_models import tiny_text_config
from transformers import (
    CLIPConfig,
    CLIPModel,
    HfArgumentParser,
    WavLMConfig,
    WavLMModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)
from typer.main import get_command
from typer.testing import CliRunner

from triemo.processing.media_triemo import load_frames
from triemo.serving.cli import app
from triemo.serving.endpoint.handler import EndpointHandler
from triemo.serving.endpoint.server import parse_arguments as parse_endpoint_arguments
from triemo.serving.reading import load_reader
from triemo.training import evaluate_model, evaluate_pretraining, finetune, pretrain
from triemo.training.arguments import parse_arguments, parse_pretrain_arguments
from triemo.training.common import DIALOGUE_MODEL, default_model
from triemo.training.recipes import contexts, dialogue_head, few_labels, ravdess_folds, seed_spread

DEMO = "serving/assets/demo.mp4"
LABELS = {"anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise"}

# Command -> the test that runs it, here unless a file is named.
RUN = {
    "make demo": "tests/serving/test_demo.py, test_setup.py plans it",
    "make test": "this suite",
    "triemo predict serving/assets/demo.mp4 --text \"Oh wow, you really came! I can't believe it, "
    "I'm so happy to see you!\"": "test_answer_in_the_readme_is_what_is_printed",
    "triemo predict clip.mp4": "test_predict",
    'triemo predict --text "Leave me alone."': "test_predict",
    "triemo predict a.mp4 b.wav c.jpg --json": "test_predict",
    "python training/finetune.py --table my.csv --output_dir runs/mine": "test_own_data",
    "triemo predict --model runs/mine clip.mp4": "test_own_data",
    "triemo dialogue serving/assets/call.opus --transcript serving/assets/call.srt --output report/ "
    '--rule "anger rising for 2 turns to 0.5"': "test_dialogue",
    "python training/evaluate_model.py --model runs/mine --table my.csv --split validation "
    "--output runs/mine/evaluation": "test_own_data",
    "python training/recipes/seed_spread.py runs/mine_1 runs/mine_2 runs/mine_3": "test_own_data",
    "triemo pack clips/ --transcripts transcripts.csv --output shards/": "test_pretraining",
    "python training/pretrain.py --table shards/ --streaming true --max_steps 10000 --output_dir runs/pretrained": (
        "test_pretraining"
    ),
    "python training/finetune.py --model runs/pretrained --table my.csv --output_dir runs/mine": "test_pretraining",
    "python training/publish/figures.py": "tests/training/publish/test_figures.py",
    'curl $ENDPOINT -H \'Content-Type: application/json\' -d \'{"inputs": "I miss you", '
    '"parameters": {"top_k": 2}}\'': "test_requests_to_the_endpoint",
    'printf \'{"inputs": {"video": "%s"}, "parameters": {"subsets": true}}\' "$(base64 -w0 clip.mp4)" |'
    " curl $ENDPOINT -H 'Content-Type: application/json' -d @-": "test_requests_to_the_endpoint",
}
# Command -> why it is not run; `test_arguments_are_those_of_the_commands` parses those of ours.
NOT_RUN = {
    "triemo predict clip.mp4 --explain": "tests/serving/test_predict.py",
    "triemo read clips/ --output results/": "tests/serving/collection/test_collection.py",
    "pip install -e .": "network",
    "pip install -e '.[demo]'": "network",
    "pip install -e '.[export]'": "network",
    "pip install onnxruntime tokenizers numpy Pillow av typer": "network; tests/serving/onnx/test_reader.py",
    "pip install --no-deps -e .": "network",
    "python -m triemo.serving.repair_torchaudio": "changes the installation; test_setup.py runs it on a copy",
    "hf auth login": "network",
    "source .venv/bin/activate": "changes the shell",
    "python -m triemo.serving.endpoint.server runs/mine --port 8080": "does not end; serving/endpoint/test_server.py",
    "curl $PAGE/gradio_api/call/v2/emotions -H 'Content-Type: application/json' -d '{\"words\": \"I miss you\"}'": (
        "needs a page; tests/serving/page/test_app.py"
    ),
    "curl -N $PAGE/gradio_api/call/emotions/$EVENT_ID": "needs a page; tests/serving/page/test_app.py",
    "triemo dialogue call.wav --transcript call.json --diarization call.rttm --output report/": (
        "tests/serving/timeline/test_dialogues.py"
    ),
    'triemo dialogue call.wav --transcript call.srt --rule "anger rising for 3 turns" --alert $URL': (
        "tests/serving/test_dialogue.py"
    ),
    "triemo dialogue turns.jsonl --live": "tests/serving/test_dialogue.py",
    "triemo timeline serving/assets/demo.mp4 --chunk 1 --stride 0.25 --format png": (
        "makes the README's picture; tests/serving/timeline/test_recording_timeline.py"
    ),
    "triemo serve": "does not end; tests/serving/page/test_app.py opens the page",
    "triemo serve --model runs/mine --port 8080": "does not end",
    "triemo export --model runs/mine --output onnx/": "a minute; tests/serving/onnx/test_reader.py exports",
    "triemo export --model checkpoints/triemo-small --output onnx/": "a minute",
    "triemo predict --model onnx/ clip.mp4": "needs that export; tests/serving/onnx/test_reader.py",
    "triemo publish me/my-model --checkpoint runs/mine --dry-run out": "tests/training/publish/test_publish.py",
    "triemo publish me/my-model --checkpoint runs/mine --private": "network; tests/training/publish/test_publish.py",
    "triemo publish me/my-model --checkpoint runs/mine --space me/my-demo --dry-run out": (
        "tests/serving/page/test_app.py"
    ),
    "python training/finetune.py --config training/configs/meld_lora.yaml --data DATA": "corpora, an hour",
    "python training/evaluate_pretraining.py --model runs/pretrained --corpora ravdess,fer2013,goemotions "
    "--data DATA": "corpora; tests/training/test_evaluate_pretraining.py",
    "torchrun --nproc_per_node 2 training/finetune.py ... --use_cpu": "tests/training/test_finetune.py",
    "accelerate launch --config_file training/configs/ddp.yaml --num_processes 4 training/finetune.py ...": "GPUs",
    "accelerate launch --config_file training/configs/fsdp2.yaml --num_processes 8 training/pretrain.py ...": "GPUs",
    "accelerate launch --config_file training/configs/multi_node.yaml --num_machines 4 --num_processes 32 "
    "--machine_rank $RANK --main_process_ip $FIRST training/pretrain.py ...": "GPUs",
    "make checkpoint DATA=folder": "corpora, hours",
    "python training/recipes/ravdess_folds.py --data folder": "corpora, hours",
    "python training/recipes/few_labels.py --data folder": "corpora, hours",
    "python training/finetune.py --config training/configs/dialogues.yaml --table turns.csv "
    "--context_type transformer": "tests/training/test_dialogue_task.py",
    "python training/recipes/contexts.py --corpus meld --data DATA": "tests/training/recipes/test_contexts.py",
    "python training/recipes/dialogue_head.py --data folder": "tests/training/recipes/test_dialogue_head.py",
}


def test_every_command_is_run_or_listed():
    written = {command for paper in PAPERS for command in commands(paper)}
    assert written == RUN.keys() | NOT_RUN.keys()
    for place in (*RUN.values(), *NOT_RUN.values()):
        for file in re.findall(r"tests/\S+\.py", place):
            assert (ROOT / file).is_file(), file
        for name in re.findall(r"\btest_\w+(?![\w.])", place):
            assert name in globals(), name


# Arguments


def hf_parser(arguments_class: type) -> Callable[[list[str]], Any]:
    def parse(argv: list[str]) -> Any:
        return HfArgumentParser(arguments_class).parse_args_into_dataclasses(argv, look_for_args_file=False)

    return parse


SCRIPTS = {
    "training/finetune.py": parse_arguments,
    "training/pretrain.py": parse_pretrain_arguments,
    "training/evaluate_model.py": hf_parser(evaluate_model.EvaluationArguments),
    "training/evaluate_pretraining.py": hf_parser(evaluate_pretraining.PretrainingEvaluationArguments),
    "training/recipes/ravdess_folds.py": hf_parser(ravdess_folds.FoldRun),
    "training/recipes/few_labels.py": hf_parser(few_labels.FewLabelsRun),
    "training/recipes/dialogue_head.py": hf_parser(dialogue_head.HeadRun),
    "training/recipes/contexts.py": hf_parser(contexts.ContextsRun),
    "triemo.serving.endpoint.server": parse_endpoint_arguments,
}
ELLIPSIS = ["--table", "my.csv", "--output_dir", "runs/mine"]


def parse_triemo(argv: list[str]) -> None:
    group: Any = get_command(app)
    group.commands[argv[0]].make_context(argv[0], argv[1:])


def parse_script(argv: list[str]) -> None:
    script, *rest = argv[1:] if argv[0] == "-m" else argv
    SCRIPTS[script]([part for word in rest for part in (ELLIPSIS if word == "..." else [word])])


def parse_torchrun(argv: list[str]) -> None:
    from torch.distributed.run import get_args_parser

    launch = get_args_parser().parse_args(argv)
    parse_script([launch.training_script, *launch.training_script_args])


def parse_accelerate(argv: list[str]) -> None:
    from accelerate.commands.launch import launch_command_parser

    known = {"$RANK": "1", "$FIRST": "10.0.0.1"}
    launch = launch_command_parser().parse_args([known.get(word, word) for word in argv[1:]])
    assert argv[0] == "launch" and Path(launch.config_file).is_file()
    parse_script([launch.training_script, *launch.training_script_args])


def plan_make(argv: list[str]) -> None:
    environment = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    subprocess.run(["make", "--dry-run", *argv], check=True, capture_output=True, env=environment)


PROGRAMS = {
    "triemo": parse_triemo,
    "python": parse_script,
    "torchrun": parse_torchrun,
    "accelerate": parse_accelerate,
    "make": plan_make,
}
NO_ARGUMENTS_OF_OURS = (
    "pip install",
    "hf auth",
    "source",
    "curl",
    "printf",
    "python -m triemo.serving.repair_torchaudio",
)
PARSED_BY_RUNNING = ("python training/recipes/seed_spread.py", "python training/publish/figures.py")


def test_arguments_are_those_of_the_commands(monkeypatch):
    monkeypatch.chdir(ROOT)
    parsed = [c for c in (*RUN, *NOT_RUN) if not c.startswith((*NO_ARGUMENTS_OF_OURS, *PARSED_BY_RUNNING))]
    assert len(parsed) >= 25
    for command in parsed:
        program, *argv = shlex.split(command)
        try:
            PROGRAMS[program](argv)
        except (Exception, SystemExit) as error:
            pytest.fail(f"{command}: {error!r}")


def test_arguments_that_are_not_there_are_noticed(monkeypatch):
    monkeypatch.chdir(ROOT)
    for command in (
        "triemo predict clip.mp4 --txt hello",
        "python training/finetune.py --table my.csv --output_dir runs/mine --loraa",
        "torchrun --nproc_per_nodes 2 training/finetune.py ...",
        "accelerate launch --config_file training/configs/none.yaml training/finetune.py ...",
    ):
        program, *argv = shlex.split(command)
        with pytest.raises((Exception, SystemExit)):
            PROGRAMS[program](argv)


def test_options_in_the_tables_are_taken(monkeypatch):
    """The column `add` of each section, after the command that the section is about."""
    monkeypatch.chdir(ROOT)
    starts = {
        "Fine-tune": ["python", "training/finetune.py", "--output_dir", "runs/mine"],
        "Pretrain": ["python", "training/pretrain.py", "--output_dir", "runs/pretrained", "--use_cpu"],
        "Publish": ["triemo", "publish", "me/my-model", "--checkpoint", "runs/mine"],
    }
    count = 0
    for heading, (program, *start) in starts.items():
        for line in re.findall(r"^\|.*\|$", sections("training/README.md")[heading], re.MULTILINE):
            for span in code_spans(line.split(" | ")[-1]):
                added = shlex.split(span)
                own_source = program == "triemo" or "--corpora" in added or "--composite_corpora" in added
                PROGRAMS[program]([*start, *added, *([] if own_source else ["--table", "my.csv"])])
                count += 1
    assert count >= 20


def test_options_in_the_text_exist():
    group: Any = get_command(app)
    names = {name for command in group.commands.values() for option in command.params for name in option.opts}
    names |= set(re.findall(r"--\w+", "".join(map(help_of, SCRIPTS))))
    names |= {"--help", "--cpu"}  # of every parser; of `accelerate launch`
    for file in (ROOT / "tests" / "benchmarks").glob("*.py"):
        names |= set(re.findall(r'"(--\w+)"', file.read_text("utf-8")))
    for paper in PAPERS:
        for heading, text in sections(paper).items():
            mentioned = {name for span in code_spans(text) for name in re.findall(r"(?<!\S)--[\w-]+", span)}
            assert mentioned <= names, (paper, heading, mentioned - names)


def help_of(script: str) -> str:
    printed = io.StringIO()
    with redirect_stdout(printed), pytest.raises(SystemExit):
        SCRIPTS[script](["--help"])
    return printed.getvalue()


def test_extras_exist():
    extras = set(metadata.metadata("triemo").get_all("Provides-Extra") or [])
    named = {name for paper in PAPERS for name in re.findall(r"\.\[(\w+)\]", read_paper(paper))}
    assert {"demo", "export", "faces", "dev"} <= named <= extras


# Names


@pytest.mark.parametrize("paper", PAPERS)
def test_paths_exist(paper):
    rooms = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name not in ("runs", "build", "dist")}
    document = read_paper(paper)
    words = {word for span in code_spans(document.replace("```", "")) for word in span.split()}
    words |= {word for language in ("bash", "python") for block in fenced(paper, language) for word in block.split()}
    named = {word.strip("\"'(),:;") for word in words if "/" in word}
    ours = {name for name in named if name.split("/")[0] in rooms and "*" not in name}
    assert ours
    missing = [name for name in sorted(ours) if not (ROOT / name).exists()]
    links = re.findall(r"\]\(([^)#]+)\)", document)
    missing += [link for link in links if "://" not in link and not (ROOT / paper).parent.joinpath(link).exists()]
    assert not missing
    assert ("serving/assets/page.png" in links) == (paper == "README.md")


def test_folders_are_all_told_of():
    """The table of folders names every room, and every package of `training` and `serving`."""
    named = {span.rstrip("/") for span in code_spans(sections("README.md")["Where things are"]) if span.endswith("/")}
    packages = re.findall(r'^    "triemo\.([a-z.]+)",$', (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)
    assert {"modeling", "training.data", "serving.page"} <= set(packages)
    assert {name.replace(".", "/") for name in packages} <= named


def test_names_in_contributing_stand_in_the_files_it_names():
    checked = 0
    for paragraph in sections("README.md")["Contributing"].split("\n\n"):
        spans = code_spans(paragraph)
        files = [ROOT / span for span in spans if span.endswith((".py", ".yaml"))]
        text = "\n".join(file.read_text("utf-8") for file in files)
        for name in (span for span in spans if re.fullmatch(r"\w*[A-Z]\w*", span)):
            assert re.search(rf"\b{name}\b", text), name
            checked += 1
    assert checked >= 6


def test_environment_variables_are_read():
    sources = "".join(
        file.read_text("utf-8") for room in ("training", "serving") for file in (ROOT / room).rglob("*.py")
    )
    named = {name for paper in PAPERS for name in re.findall(r"TRIEMO_\w+", read_paper(paper))}
    assert len(named) >= 5
    assert {name for name in named if name not in sources} == set()


def test_length():
    """A newcomer reads the first in ten minutes; figures are not read but looked up."""
    for paper, most in zip(PAPERS, (1500, 1400, 700), strict=True):
        text = re.sub(r"<!-- figures -->.*<!-- /figures -->", "", read_paper(paper), flags=re.DOTALL)
        assert len(text.split()) <= most, paper


def test_hours_of_the_training_are_those_of_the_metrics(checkpoint):
    minutes = json.loads((checkpoint / "metrics.json").read_text())["training_minutes"]
    (row,) = re.findall(r"^\| `make checkpoint` \|.*$", read_paper("README.md"), re.MULTILINE)
    assert f"{sum(minutes.values()) / 60:.1f} h " in row
    minutes["faces"] = minutes.pop("vision") + minutes.pop("vision_refine")
    names = {"faces": "faces", "joint": "joint", "words": "text", "voice": "audio"}
    shown = ", ".join(f"{name} {minutes[stage]:.0f}" for name, stage in names.items())
    assert shown in row


# What is read


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder with the files that the READMEs speak of; `tiny` stands for the released checkpoint."""
    folder = tmp_path_factory.mktemp("workshop")
    for name in ("clip.mp4", "a.mp4"):
        shutil.copyfile(ROOT / DEMO, folder / name)
    frames, _ = load_frames(ROOT / DEMO, num_frames=1)
    (folder / "faces").mkdir()
    (folder / "clips").mkdir()
    for name in ("face.jpg", "c.jpg", "faces/001.jpg"):
        Image.fromarray(frames[0]).save(folder / name)
    for number, name in enumerate(("voice.wav", "b.wav", "clips/001.wav", "clips/002.wav", "clips/003.wav")):
        write_voice(folder / name, 300 + 200 * number, seed=number)
    (table,) = fenced("README.md", "csv")
    (folder / "my.csv").write_text(table)
    (folder / "transcripts.csv").write_text("file,text\n001.wav,what a day\n002.wav,i am sad\n003.wav,i am happy\n")
    for name in ("checkpoints", "serving", "training"):
        (folder / name).symlink_to(ROOT / name)
    save_tiny_checkpoint(folder / "tiny")
    return folder


@pytest.fixture
def at_work(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(workshop)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    return workshop


def written(start: str) -> list[str]:
    """The words of the one command that is run here and starts like this."""
    (command,) = (command for command in RUN if command.startswith(start))
    return shlex.split(command)


def triemo(start: str, *more: str) -> str:
    """What a `triemo` command of a README prints."""
    result = CliRunner().invoke(app, [*written(start)[1:], *more])
    assert result.exit_code == 0, result.output
    return result.stdout


def scores_of(printed: str) -> dict[str, float]:
    return {label: float(score) for label, score in re.findall(r"^ (\w+) +(\d+\.\d) %", printed, re.MULTILINE)}


def test_answer_in_the_readme_is_what_is_printed(at_work, checkpoint):
    """Scores to two tenths of a percent, since other processors round otherwise; all else to the letter."""
    printed = triemo(f"triemo predict {DEMO}", "--device", "cpu")
    (shown, *_) = fenced("README.md", "text")
    assert scores_of(shown) == pytest.approx(scores_of(printed), abs=0.2) and scores_of(shown).keys() == LABELS
    score_line = re.compile(r"^ \w+ +\d+\.\d %.*\n", re.MULTILINE)

    def rest(text: str) -> str:
        return re.sub(r" +$", "", score_line.sub("", text), flags=re.MULTILINE)

    assert rest(shown) == rest(printed)


def test_predict(at_work, checkpoint):
    for start, label in (("triemo predict clip.mp4", "joy"), ("triemo predict --text", "anger")):
        scores = scores_of(triemo(start))
        assert max(scores, key=scores.__getitem__) == label and scores.keys() == LABELS
    documents = json.loads(triemo("triemo predict a.mp4"))
    assert [document["file"] for document in documents] == ["a.mp4", "b.wav", "c.jpg"]
    assert documents[2]["label"] == "joy" and documents[2]["modalities"] == ["vision"]


def test_dialogue(at_work):
    """The made call: as many turns as the transcript, of two voices, and all files; by a tiny model, for speed."""
    save_tiny_checkpoint(at_work / "dialogue" / "towers")
    tiny_head(base_model_name_or_path="somebody/towers").save_pretrained(at_work / "dialogue" / "head")
    printed = triemo("triemo dialogue serving/assets/call.opus", "--model", "dialogue/head", "--device", "cpu")
    assert "call.opus: 15 turns" in printed and "by Agent" in printed and "by Customer" in printed
    assert {file.name for file in (at_work / "report").iterdir()} == {
        f"call.opus.{kind}" for kind in ("json", "csv", "png", "html")
    }
    turns = json.loads((at_work / "report" / "call.opus.json").read_text())["turns"]
    assert all(turn["modalities"] == ["text", "audio"] and turn["end"] > turn["start"] for turn in turns)
    assert [turn["speaker"] for turn in turns] == ["Agent", "Customer"] * 7 + ["Agent"]


@pytest.mark.skipif(not default_model(DIALOGUE_MODEL).startswith("/"), reason="the head of conversations is not here")
def test_the_released_head_follows_the_made_call(at_work):
    """The customer is calm, gets angry when he is put off (turns 8 and 10), and is glad when he is helped."""
    read = json.loads(triemo("triemo dialogue serving/assets/call.opus", "--device", "cpu", "--json"))
    customer = [turn["label"] for turn in read["turns"] if turn["speaker"] == "Customer"]
    assert customer[0] == "neutral" and "anger" in customer[3:5] and customer[-1] == "joy"
    points = [point for point in read["turning_points"] if point["speaker"] == "Customer"]
    assert any(point["after"] == "anger" for point in points) and points[-1]["after"] == "joy"


def test_python_of_the_readme(at_work, checkpoint):
    by_pipeline, by_auto_classes = fenced("README.md", "python")
    clip, both, several = run_python_block(by_pipeline, {})
    assert len(clip) == 3 and both[0]["label"] == "joy" and len(both) == 7
    assert [answer[0]["label"] for answer in (several[0], several[2])] == ["anger", "joy"]
    names: dict[str, Any] = {}
    scores, embeddings, attention = run_python_block(by_auto_classes, names)
    answers = {entry["label"]: entry["score"] for entry in load_reader(None, "cpu")("clip.mp4")}
    shown = {names["model"].config.id2label[index]: float(score) for index, score in enumerate(scores)}
    assert shown == pytest.approx(answers, abs=1e-4)
    assert embeddings[1][1].norm() == pytest.approx(1, abs=1e-3)
    assert attention.shape[0] == 2


def run_script(main: Callable[[list[str]], Any], start: str, *more: str) -> Any:
    """The `main` of a script with the arguments of a README, and over them what makes it short."""
    return main([*written(f"python training/{start}")[2:], *more])


SHORT = ("--use_cpu", "true", "--max_steps", "2", "--disable_tqdm", "true", "--per_device_train_batch_size", "2")


def test_own_data(at_work):
    """The csv of the README, as it stands there, is learned, read and scored."""
    results = run_script(finetune.main, "finetune.py --table", "--model", "tiny", *SHORT)
    assert results["steps"] == 2 and set(results["class_counts"]) == LABELS
    assert sum(results["class_counts"].values()) == 2  # of three rows one became validation
    document = json.loads(triemo("triemo predict --model runs/mine", "--json"))
    assert document["model"] == "runs/mine" and document["label"] in LABELS
    scored = run_script(evaluate_model.main, "evaluate_model.py", "--use_cpu", "--no_plot")
    assert scored["parts"]["my"]["samples"] == 1 and Path("runs/mine/evaluation/evaluation.json").is_file()
    found = json.loads(Path("runs/mine/results.json").read_text())
    for seed in (1, 2, 3):
        Path(f"runs/mine_{seed}").mkdir()
        found["arguments"]["seed"] = seed
        found["test"] = {"my": {"accuracy": 0.5 + 0.1 * seed}}
        Path(f"runs/mine_{seed}/results.json").write_text(json.dumps(found))
    mean = run_script(seed_spread.main, "recipes/seed_spread.py")["test"]["my"]["accuracy"]["mean"]
    assert mean == pytest.approx(0.7)


def test_pretraining(at_work):
    """Clips are packed, streamed and learned from, and fine-tuning starts from the result."""
    assert "3 clips in 1 shards" in triemo("triemo pack")
    assert run_script(pretrain.main, "pretrain.py", "--model", "tiny", *SHORT)["steps"] == 2
    results = run_script(finetune.main, "finetune.py --model runs/pretrained", *SHORT, "--output_dir", "runs/after")
    assert results["steps"] == 2 and Path("runs/after/model.safetensors").is_file()


def test_encoders_by_name(at_work):
    """The Python of training/README.md as it stands, with tiny encoders in folders of the names it uses."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 37}
    text = tiny_text_config()
    words = XLMRobertaConfig(**sizes, vocab_size=text.vocab_size, pad_token_id=1, max_position_embeddings=66)
    waves = WavLMConfig(
        **sizes, conv_dim=(8, 8), conv_kernel=(8, 4), conv_stride=(8, 4), num_feat_extract_layers=2,
        num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2, feat_extract_norm="layer", layerdrop=0.0,
    )  # fmt: skip
    pictures = CLIPConfig(
        text_config=sizes | {"vocab_size": 60, "projection_dim": 16},
        vision_config=sizes | {"image_size": 32, "patch_size": 8, "projection_dim": 16},
        projection_dim=16,
    )
    XLMRobertaModel(words).save_pretrained("FacebookAI/xlm-roberta-base")
    WavLMModel(waves).save_pretrained("microsoft/wavlm-base-plus")
    CLIPModel(pictures).save_pretrained("openai/clip-vit-base-patch32")
    code, _ = fenced("training/README.md", "python")
    names: dict[str, Any] = {}
    run_python_block(code, names)
    trained = {name for name, parameter in names["model"].named_parameters() if parameter.requires_grad}
    for part in ("text_tower", "audio_tower", "vision_tower", "classifier"):
        assert any(part in name for name in trained), part
    assert all("lora" in name or "classifier" in name for name in trained)


def test_conversations():
    """The Python of training/README.md: what a push gives is what the whole dialogue gave."""
    _, code = fenced("training/README.md", "python")
    names: dict[str, Any] = {}
    logits, pushed = run_python_block(code, names)
    assert logits.shape == (2, 30, 7) and pushed.shape == (2, 1, 7)
    torch.testing.assert_close(pushed, logits[:, :1], atol=1e-5, rtol=1e-5)


def test_requests_to_the_endpoint(at_work, checkpoint):
    """As they stand, sent by curl to a server on this machine."""
    if shutil.which("curl") is None:
        pytest.skip("no curl")
    handler = EndpointHandler("checkpoints/triemo-small")
    with serve(handler) as address:
        answers = []
        for block in fenced("serving/README.md", "bash"):
            if "$ENDPOINT" in block:
                script = f"ENDPOINT={address}\n{block.replace('curl ', 'curl -sS ')}"
                done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
                decoder = json.JSONDecoder()
                first, end = decoder.raw_decode(done.stdout)
                answers = [first, decoder.raw_decode(done.stdout[end:].strip())[0]]
    assert len(answers[0]) == 2 and answers[0][0]["label"] == "sadness"
    assert answers[1]["scores"][0]["label"] == "joy" and len(answers[1]["subsets"]) == 3
