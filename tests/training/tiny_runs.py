"""Command lines of short runs: a tiny checkpoint learns a generated table; and what it predicts for one."""

from pathlib import Path

from accelerate.state import PartialState

from triemo.training.data.collation import EmotionCollator
from triemo.training.evaluate_model import EvaluationArguments, load_parts
from triemo.training.metrics.subsets import predict_subsets
from triemo.training.start import load_model

__all__ = ["arguments", "predicted_logits"]


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


def predicted_logits(model: str, table: str) -> dict[str, dict[str, list[float]]]:
    """Logits of a table's training rows by subset and row, from however many processes there are."""
    classifier, processor = load_model(model)
    config = classifier.config
    problem = config.resolved_problem_type
    collator = EmotionCollator(processor, config.label2id, problem, modalities=config.modalities)
    (rows,) = load_parts(EvaluationArguments(model=model, table=table), "train").values()
    logits, _ = predict_subsets(classifier.eval(), collator, rows, PartialState(cpu=True), batch_size=2)
    return {subset: {str(row): values for row, values in by_row.items()} for subset, by_row in logits.items()}
