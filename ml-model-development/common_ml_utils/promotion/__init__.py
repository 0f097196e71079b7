"""Promotion: the gate and its guards, the ledger of every decision, approval and rollback."""
