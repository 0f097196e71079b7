"""Tests of this root."""
