"""Commands that bring raw data into PostgreSQL: simulate, clean, load."""
