"""Tools of the three servers: secrets, Compose stacks, policy, images, templates, backups."""
