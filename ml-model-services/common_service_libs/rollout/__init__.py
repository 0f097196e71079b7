"""Canary and shadow of release bundles: who gets which model, what comes of it, and a verdict."""
