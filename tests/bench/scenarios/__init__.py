"""One module per scenario, each with a class that the registry in `tests.bench.scenario` knows."""
