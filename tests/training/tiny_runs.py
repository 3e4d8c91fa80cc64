"""Command lines of short runs: a tiny checkpoint learns a generated table."""

from pathlib import Path

__all__ = ["arguments"]


def arguments(place: Path, output: str, **changes) -> list[str]:
    """Of `finetune.py` and `pretrain.py`; `place` holds `tiny/` and `data/table.csv`."""
    values = {
        "model": place / "tiny",
        "table": place / "data" / "table.csv",
        "output_dir": place / output,
        "use_cpu": "true",
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "num_train_epochs": 2,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "disable_tqdm": "true",
        "seed": 3,
    }
    return [text for name, value in (values | changes).items() for text in (f"--{name}", str(value))]
