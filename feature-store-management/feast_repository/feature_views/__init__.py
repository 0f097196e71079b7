"""Feature views, one a file. Fields come from the contracts, times to live stand here with their reason."""
