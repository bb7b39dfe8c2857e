"""The searches, one file per published method; each takes `model,
task` and returns `Scores` or a `Circuit`."""
