from __future__ import annotations

from pathlib import Path

import yaml
from service_testkit import REPOSITORY

HERE = Path(__file__).parent


def test_the_online_reads_targets_are_those_of_the_feature_stores_report() -> None:
    """The report of benchmarks there takes this root's figures over, by name."""
    own = yaml.safe_load((HERE / "bench_targets.yaml").read_text())
    theirs = yaml.safe_load(
        (REPOSITORY / "feature-store-management" / "benchmarks" / "targets.yaml").read_text()
    )
    assert own == {name: bound for name, bound in theirs.items() if name.startswith("online read")}
    benchmark = (HERE / "bench_online_read.py").read_text()
    assert all(f'result("{name}"' in benchmark for name in own)
