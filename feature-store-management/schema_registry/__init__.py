"""Schema contracts of topics and raw tables: compatibility, published history, an embedded registry."""
