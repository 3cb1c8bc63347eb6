"""Lightning callbacks: image grids, run set-up, device statistics. YAML files name them by dotted path."""
