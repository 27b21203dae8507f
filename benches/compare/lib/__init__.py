"""What `benches/compare/run` is made of. Python's standard library only."""
