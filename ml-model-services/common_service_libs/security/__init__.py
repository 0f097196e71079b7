"""Who may call, how often, and with what kind of body."""
