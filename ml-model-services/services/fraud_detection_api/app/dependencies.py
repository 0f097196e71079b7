"""What a route needs beside its body: the scopes of a key begin with this word."""

from __future__ import annotations

SCOPE = "fraud"
