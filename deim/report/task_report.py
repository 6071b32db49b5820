"""The report of a trained detector, written by the task that trained it."""

from pathlib import Path

from deim.engine.task import report_function
from deim.engine.trained_detector import TrainedDetector
from deim.inference.evaluator import Evaluator
from deim.report.evaluate import WrittenReport, evaluate_checkpoint


def evaluate_run(
    trained: TrainedDetector, evaluator: Evaluator, *, split_name: str, report_path: Path
) -> WrittenReport:
    """Evaluate a detector of any task on a split and write its report.

    Args:
        trained: From `load_trained`.
        evaluator: Evaluator of the split.
        split_name: `train`, `val` or `test`, for the report.
        report_path: The JSON report; the other files lie beside it.

    Raises:
        DataError: If an image is damaged, or `report_path` is a folder.
    """
    evaluate = report_function(trained.task, "evaluate_checkpoint", evaluate_checkpoint)
    result: WrittenReport = evaluate(trained, evaluator, split_name=split_name, report_path=report_path)
    return result


def evaluate_share(trained: TrainedDetector, evaluator: Evaluator) -> None:
    """Do a process's share of `evaluate_run` in the main process.

    Args:
        trained: The same detector as there.
        evaluator: Evaluator of the same split.
    """
    report_function(trained.task, "evaluate_share", _evaluate_share)(trained, evaluator)


def _evaluate_share(trained: TrainedDetector, evaluator: Evaluator) -> None:
    evaluator.evaluate(trained.model)
