"""What every decision service shares: settings, errors, features, bundles, label engine, decision log."""

__version__ = "0.1.0"
