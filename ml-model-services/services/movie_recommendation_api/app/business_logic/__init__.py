"""What the service knows about viewers and movies."""
