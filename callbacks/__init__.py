"""Lightning callbacks: picture grids, run set-up, device statistics. YAML files name them by dotted path."""
