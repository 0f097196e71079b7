"""What the demo tells at its end: one report, as data and as text a person can read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import psycopg

from local_stack.demo.freshness import COUNT, MEAN

# Today's totals come from the stream.
BEFORE_TODAY = "event_timestamp <= date_trunc('day', now())"
TABLES = {
    "transactions": "raw.transactions",
    "customer days": "features.fct_customer_daily",
    "terminal days": "features.fct_terminal_daily",
    "customer running totals": f"features.fct_customer_today where {BEFORE_TODAY}",
    "terminal running totals": f"features.fct_terminal_today where {BEFORE_TODAY}",
    "subscribers": "features.fct_subscriber_profile",
    "movie ratings": "labels.fct_movie_ratings",
}
METRICS = {
    "auc_roc": "AUC ROC",
    "average_precision": "average precision",
    "card_precision_100": "card precision@100",
}
FRAUD_MODEL = "fraud-detection-model"
CHURN_MODEL = "churn-prediction-model"
RECOMMENDATION_MODEL = "movie-recommendation-model"
ADDRESSES = {
    "fraud API": "FRAUD_API_URL",
    "churn API": "CHURN_API_URL",
    "movies API": "RECOMMENDATION_API_URL",
    "page": "DECISION_PAGE_URL",
    "MLflow": "MLFLOW_TRACKING_URI",
}


class MissingReportError(Exception):
    """A command did not leave the report that the summary needs."""


def connect(env: Mapping[str, str], prefix: str) -> psycopg.Connection:
    """Connect to the database whose settings begin with `prefix`."""
    return psycopg.connect(
        host=env[f"{prefix}_HOST"],
        port=env[f"{prefix}_PORT"],
        dbname=env[f"{prefix}_NAME"],
        user=env[f"{prefix}_USER"],
        password=env[f"{prefix}_PASSWORD"],
        connect_timeout=5,
        options="-c timezone=UTC",
    )


def loaded_dataset(env: Mapping[str, str]) -> str | None:
    """Return the id of the loaded data set, None when nothing was loaded yet."""
    with connect(env, "FEATURE_STORE_DB") as connection:
        if connection.execute("select to_regclass('raw.dataset')").fetchone() == (None,):
            return None
        row = connection.execute("select dataset_id from raw.dataset").fetchone()
        return row[0] if row else None


def read_report(path: Path) -> dict[str, Any]:
    """Return a report; raises MissingReportError when the command that writes it did not."""
    try:
        report: dict[str, Any] = json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError) as error:
        raise MissingReportError(f"{path}: {error}") from None
    return report


@dataclass(frozen=True)
class Run:
    """What the demo itself knows: the decisions it was given, task durations, seconds by stage, memory."""

    scale: str
    today: date
    last_day: date
    decisions: Sequence[Mapping[str, Any]]
    stream: Mapping[str, Any]
    dags: Sequence[Mapping[str, Any]]
    seconds: Mapping[str, float]
    peak_mb: float


def collect(env: Mapping[str, str], run: Run) -> dict[str, Any]:
    """Gather the demo's report from the tables and from what each command reported."""
    reports = Path(env["REPORTS_DIR"])
    drift_report = reports / "drift" / f"{FRAUD_MODEL}-{run.last_day}.html"
    drift = read_report(drift_report.with_suffix(".json"))
    handbook = read_report(reports / "fraud" / "handbook.json")
    ((frauds,),) = _rows(env, "FEATURE_STORE_DB", "select sum(is_fraud) from raw.transaction_labels")
    rows = {name: _count(env, table) for name, table in TABLES.items()}
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "scale": run.scale,
        "today": run.today.isoformat(),
        "transactions": rows["transactions"],
        "frauds": int(frauds),
        "rows": rows,
        "fraud": {
            **{name: handbook["metrics"][name] for name in METRICS},
            "protocol": "Fraud Detection Handbook, single split",
            "full_set": handbook["full_set"],
            "published": handbook["published"]["XGBoost"],
            **_model(reports / "fraud"),
        },
        "churn": {
            "auc_roc": read_report(reports / "churn" / "train.json")["validation_mean"]["validation_auc_roc"],
            "protocol": "5-fold cross-validation",
            **_model(reports / "churn"),
        },
        "recommendation": {
            "ndcg_at_10": read_report(reports / "recommendation" / "train.json")["metrics"]["ndcg_at_10"],
            "protocol": "each viewer's last ratings, in order of time",
            **_model(reports / "recommendation"),
        },
        "decisions": list(run.decisions),
        "stream": dict(run.stream),
        "batch": {
            "data_date": str(run.last_day),
            "decisions": _batch_decisions(env, FRAUD_MODEL, run.last_day),
            "churn_decisions": _batch_decisions(env, CHURN_MODEL, run.last_day),
            "viewers_with_recommendations": _viewers_with_recommendations(env, run.last_day),
        },
        "drift": {"verdict": drift["verdict"], "report": str(drift_report)},
        "dags": list(run.dags),
        "seconds": {name: round(value, 1) for name, value in run.seconds.items()},
        "seconds_by_dag": {dag["dag_id"]: round(dag["seconds"], 1) for dag in run.dags},
        "seconds_total": round(sum(run.seconds.values()), 1),
        "peak_rss_mb": round(run.peak_mb),
        "addresses": {name: env[key] for name, key in ADDRESSES.items()},
    }


def _batch_decisions(env: Mapping[str, str], model: str, day: date) -> dict[str, int]:
    statement = (
        "select decision, count(*) from decisions.batch_decisions where model_name = %s and data_date = %s"
        " group by decision order by decision"
    )
    return dict(_rows(env, "DECISIONS_DB", statement, (model, day)))


def _viewers_with_recommendations(env: Mapping[str, str], day: date) -> int:
    statement = (
        "select count(distinct viewer_id) from scoring.batch_recommendations"
        " where model_name = %s and data_date = %s"
    )
    ((viewers,),) = _rows(env, "DECISIONS_DB", statement, (RECOMMENDATION_MODEL, day))
    return int(viewers)


def _model(folder: Path) -> dict[str, Any]:
    train, gate = read_report(folder / "train.json"), read_report(folder / "gate.json")
    return {
        "champion_version": gate["champion_after"],
        "challenger_version": train["version"],
        "holdout_metrics": train["metrics"],
        "gate": {"verdict": gate["verdict"], "reasons": gate["reasons"]},
    }


def _rows(
    env: Mapping[str, str], prefix: str, query: str, parameters: Sequence[Any] = ()
) -> list[tuple[Any, ...]]:
    with connect(env, prefix) as connection:
        return connection.execute(query.encode(), parameters).fetchall()


def _count(env: Mapping[str, str], table: str) -> int:
    ((count,),) = _rows(env, "FEATURE_STORE_DB", f"select count(*) from {table}")  # noqa: S608 - names from TABLES
    return int(count)


def render(report: Mapping[str, Any]) -> str:
    """Return the report as text."""
    lines = ["", f"What happened ({report['scale']} set, as of {report['today']} 00:00 UTC)", "=" * 72]
    lines += [f"  {name:<28}{count:>12,}" for name, count in report["rows"].items()]
    lines.append(f"  {'of the transactions, frauds':<28}{report['frauds']:>12,}")
    lines += ["", "Fraud model on the Handbook's single split           here  published"]
    fraud = report["fraud"]
    for name, title in METRICS.items():
        published = f"{fraud['published'][name]:.3f}" if fraud["full_set"] else "(full set only)"
        lines.append(f"  {title:<46}{fraud[name]:>9.3f}  {published}")
    lines.append(f"Churn model, {report['churn']['protocol']}: AUC ROC {report['churn']['auc_roc']:.3f}")
    recommended = report["recommendation"]
    lines.append(f"Recommender, {recommended['protocol']}: nDCG@10 {recommended['ndcg_at_10']:.3f}")
    lines += ["", "The gate"]
    for name in ("fraud", "churn", "recommendation"):
        model = report[name]
        lines.append(
            f"  {name}: challenger is version {model['challenger_version']}: {model['gate']['verdict']}; "
            f"champion is version {model['champion_version']}"
        )
        lines += [f"      {reason}" for reason in model["gate"]["reasons"]]
    lines += ["", "Decisions", f"  {'known as':<32}{'score':>7}  {'decision':<9}{'ms':>6}  reasons"]
    lines += [_decision(one) for one in report["decisions"]]
    batch = report["batch"]
    lines += [
        f"  Batch of {batch['data_date']}, {name}: {_counted(batch[key])}"
        for name, key in (("transactions", "decisions"), ("subscribers", "churn_decisions"))
    ]
    lines.append(f"  Movies were picked for {batch['viewers_with_recommendations']:,} viewers")
    lines += ["", *_stream(report["stream"])]
    lines += ["", f"Drift: {report['drift']['verdict']} ({report['drift']['report']})"]
    stages = ", ".join(f"{name} {value:.0f}" for name, value in report["seconds"].items())
    lines += [
        "",
        f"{report['seconds_total']:.0f} s in all: {stages}; peak memory {report['peak_rss_mb']:,} MB",
    ]
    lines += ["", "Still up (make status, make down):"]
    lines += [f"  {name:<12}{address}" for name, address in report["addresses"].items()]
    return "\n".join(lines)


def _counted(decisions: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {decision}" for decision, count in decisions.items())


def _stream(stream: Mapping[str, Any]) -> list[str]:
    before, after = stream["before"]["features"], stream["after"]["features"]
    return [
        f"Stream: customer {stream['customer_id']} paid {len(stream['payments'])} times just now; "
        f"{stream['seconds']:.0f} s later, through the DAG, the next decision knows it",
        f"  transactions of a day and now {before[COUNT]:>10.0f} before {after[COUNT]:>10.0f} after",
        f"  mean amount                   {before[MEAN]:>10.2f} before {after[MEAN]:>10.2f} after",
    ]


def _decision(one: Mapping[str, Any]) -> str:
    score = "-" if one["score"] is None else f"{one['score']:.3f}"
    reasons = ", ".join(one["reason_codes"]) or "-"
    return f"  {one['known_as'][:31]:<32}{score:>7}  {one['decision']:<9}{one['latency_ms']:>6.1f}  {reasons}"
