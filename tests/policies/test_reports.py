import pytest

from reconcilers.train import reported_loss, reported_metrics


@pytest.mark.parametrize(
    ("report", "value", "reason"),
    [
        ([], None, "NoResult"),
        ([{"kind": "metric", "name": "rows", "value": 1.0}], None, "NoResult"),
        ([{"kind": "result", "loss": "nan"}], None, "NotFinite"),
        ([{"kind": "result", "loss": "inf"}], None, "NotFinite"),
        ([{"kind": "result", "loss": None}], None, "NotFinite"),
        ([{"kind": "result", "loss": [1]}], None, "NotFinite"),
        ([{"kind": "result", "loss": 0.0}], 0.0, ""),
        ([{"kind": "result", "loss": 1.0}, {"kind": "result", "loss": 0.5}], 0.5, ""),
    ],
)
def test_what_a_program_reported_is_a_finite_loss_or_a_reason(
    report: list[dict[str, object]], value: float | None, reason: str
) -> None:
    assert reported_loss(report) == (value, reason)


def test_the_last_finite_value_of_each_metric_counts() -> None:
    lines = [
        {"kind": "metric", "name": "rows", "value": 1.0},
        {"kind": "metric", "name": "rows", "value": 2.0},
        {"kind": "result", "loss": 0.5, "lossMetric": "rmse", "metrics": {"auc": "nan", "f1": 0.9}},
    ]
    assert reported_metrics(lines) == {"rows": 2.0, "f1": 0.9, "rmse": 0.5}
