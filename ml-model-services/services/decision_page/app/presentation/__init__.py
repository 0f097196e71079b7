"""From replies to words, figures and HTML; pure."""
