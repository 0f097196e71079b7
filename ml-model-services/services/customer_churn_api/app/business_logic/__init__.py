"""What the service knows about subscribers."""
