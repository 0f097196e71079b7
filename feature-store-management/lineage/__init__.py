"""Where features come from, and which version of their definition is published."""
