"""What the model projects share: training recipe, data contracts, evaluation, release bundles, gate."""
