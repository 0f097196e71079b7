"""What turns raw data into the tables of the feature store."""
