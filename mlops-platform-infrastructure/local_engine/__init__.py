"""A Docker Engine for building and testing images, where the machine has none running."""
