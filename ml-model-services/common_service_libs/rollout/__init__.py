"""Canary and shadow of release bundles: who gets which model, what it does to the decisions, and a verdict."""
