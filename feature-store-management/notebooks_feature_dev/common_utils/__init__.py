"""What the notebooks share: data, measures and the look of plots."""
