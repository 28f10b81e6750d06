"""Many hospitals on one machine: synthetic and public hospitals, the in-process grid, the runner and its controls."""
