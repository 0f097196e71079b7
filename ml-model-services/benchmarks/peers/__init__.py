"""What others would serve the same decision with: servers of their own, each in an environment of its own."""
