"""What the stages of the release recipe share: where they read and write, and the Trainer's arguments."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from triemo.training.corpora.registry import CORPORA

__all__ = ["ReleaseRun", "nesterov_sgd", "train_resumable", "trainer_arguments"]


@dataclass
class ReleaseRun:
    """What `release.py` takes on the command line."""

    config: str = field(
        default=str(Path(__file__).parent / "configs" / "triemo-small.yaml"), metadata={"help": "YAML of the stages"}
    )
    stage: str = field(default="all", metadata={"help": "one stage of the config by name, or all that are not done"})
    data: str | None = field(default=None, metadata={"help": "folder of the corpora (default: TRIEMO_DATA)"})
    weights: str | None = field(default=None, metadata={"help": "folder with local copies of the Hub encoders"})
    output: str = field(default="runs/small", metadata={"help": "folder of the towers, trainer states and logs"})
    checkpoint: str = field(default="checkpoints/triemo-small", metadata={"help": "folder of the released model"})
    threads: int = field(default=2, metadata={"help": "torch threads"})
    workers: int = field(default=0, metadata={"help": "processes that read and disturb examples beside the training"})
    use_cpu: bool = field(default=False, metadata={"help": "stay on the processor even where there is an accelerator"})
    seed: int | None = field(default=None, metadata={"help": "seed of every stage (default: the config's)"})
    open_licences: bool = field(
        default=False, metadata={"help": "leave out corpora whose licence does not allow commercial use"}
    )

    @property
    def device(self) -> torch.device:
        """Where the stages compute."""
        found = None if self.use_cpu else torch.accelerator.current_accelerator(check_available=True)
        return found or torch.device("cpu")

    def encoder(self, name: str) -> str:
        """The Hub id, or the local copy under `weights` where there is one."""
        base = name.split("/")[-1]
        for candidate in (base, f"{base}-encoder"):
            if self.weights and (Path(self.weights) / candidate).is_dir():
                return str(Path(self.weights) / candidate)
        return name

    def usable(self, corpora: Sequence[str]) -> list[str]:
        """Those of the corpora (or parts, such as `xed/zh`) that the wanted licences allow.

        Raises:
            ValueError: when none is left.
        """
        kept = [name for name in corpora if not self.open_licences or CORPORA[name.partition("/")[0]].commercial]
        if not kept:
            raise ValueError(f"open_licences: got none of {', '.join(corpora)} that may be used, expected some")
        return kept

    def folder(self, stage: str) -> Path:
        """Where a stage leaves its result; its Trainer's checkpoints lie in `trainer` below."""
        return Path(self.output) / stage


def trainer_arguments(run: ReleaseRun, stage: str, **given: Any) -> TrainingArguments:
    """The Trainer's arguments of a stage: those that all stages share, and over them `given`."""
    shared: dict[str, Any] = {
        "output_dir": str(run.folder(stage) / "trainer"),
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.06,
        "bf16": True,
        "use_cpu": run.device.type == "cpu",
        "dataloader_num_workers": run.workers,
        "dataloader_persistent_workers": run.workers > 0,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "save_total_limit": 2,
        "load_best_model_at_end": given.get("eval_strategy", "epoch") != "no",
        "logging_steps": 100,
        "remove_unused_columns": False,
        "label_names": ["labels"],
        "report_to": "none",
        "disable_tqdm": True,
        "seed": run.seed,
    }
    return TrainingArguments(**{**shared, **given})


def nesterov_sgd(model: torch.nn.Module, args: TrainingArguments) -> torch.optim.Optimizer:
    """For networks of convolutions: Nesterov's momentum, and decay of matrices and kernels alone."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in learning if p.dim() > 1], "weight_decay": args.weight_decay},
        {"params": [p for p in learning if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, lr=args.learning_rate, momentum=0.9, nesterov=True)


def train_resumable(trainer: Trainer) -> None:
    """Trains on from the last checkpoint of the Trainer's folder, or from the start where there is none."""
    folder = Path(trainer.args.output_dir)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder)) if folder.exists() else None)
