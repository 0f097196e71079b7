"""The engines behind `TRAINING_BACKEND`: imported only when a fit is to run there."""
