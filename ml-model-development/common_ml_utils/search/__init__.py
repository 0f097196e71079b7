"""The parts of a search: its space, its study in PostgreSQL, its pages and its runs."""
