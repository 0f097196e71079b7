"""The page: decisions of the services for people, over HTTP alone."""
