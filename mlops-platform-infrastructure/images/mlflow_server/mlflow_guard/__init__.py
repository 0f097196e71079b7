"""A layer in front of MLflow's server: who may call what, from where, and what may be kept."""
