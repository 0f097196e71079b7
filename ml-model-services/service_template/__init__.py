"""The template of a decision service: `python -m service_template.create NAME`."""
