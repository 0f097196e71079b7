"""What keeps a service answering while something fails: breaker, hot snapshot, load shedding, drain."""
