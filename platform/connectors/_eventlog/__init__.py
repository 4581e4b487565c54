"""The parts of the event-log connector: chain, snapshot, capture, package, target."""
