"""What the model projects share: the training recipe, data contracts, evaluation, release bundles and the gate."""
