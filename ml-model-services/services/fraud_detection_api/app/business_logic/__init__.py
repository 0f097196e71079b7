"""What the service knows about card transactions."""
