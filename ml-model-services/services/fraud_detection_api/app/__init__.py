"""The fraud detection service: a card transaction in, a decision with reasons out."""
