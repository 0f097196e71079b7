"""What a person is told when Spark fails."""

from __future__ import annotations


def one_line(error: Exception) -> str:
    """Return the error's reason without the JVM's stack."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    causes = [line for line in lines if line.startswith("Caused by:") or "Exception: " in line]
    return " ".join(dict.fromkeys([*lines[:1], *causes[-1:]]))[:1000]
