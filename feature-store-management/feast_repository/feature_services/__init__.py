"""Feature services, one a file, built from the contracts. No label stands in any of them."""
