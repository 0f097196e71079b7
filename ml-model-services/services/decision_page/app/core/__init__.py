"""Settings of the page, its door, and the way to the services."""
