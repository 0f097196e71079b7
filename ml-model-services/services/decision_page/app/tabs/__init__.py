"""The tabs of the page: components, and what happens when they are used."""
