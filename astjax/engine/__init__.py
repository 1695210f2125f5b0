"""One step, of any task, on any devices."""
